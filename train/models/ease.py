"""EASE: a linear model from all items to each item, in closed form (Steck, WWW 2019).

Minimises ‖X - X B‖² + λ‖B‖² with a zero diagonal of B. With P = (XᵀX + λ)⁻¹ it is B = 1 - P / diag(P), column by
column. Exact, and as large as the square of the catalogue.
"""

from typing import Annotated, Literal

import numpy as np
import polars as pl
import scipy.sparse
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor

from cluster.errors import TowerlineError
from train.index import Codes, Floats
from train.models.catalogue_scorer import CatalogueScorer, last_if_never_met
from train.models.interactions import histories, interactions
from train.vocabulary import Vocabulary

BYTES_PER_PAIR = 20
"""Two float64 matrices at once, and then the float32 one that is kept."""
ROWS_AT_ONCE = 256
"""Of the Gram matrix."""


class EASEConfig(BaseModel):
    """How strongly the model is held back, and how large it may become."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ease"] = "ease"
    regularization: Annotated[float, Field(ge=1e-3)] = 500.0
    """λ: as if each item had so many more users who met nothing else."""
    history_half_life: PositiveFloat | None = 5.0
    """An event of the history that is so many events older than another has half its weight; none: all the same."""
    memory_limit_gib: Annotated[float, Field(gt=0)] = 4.0
    """Of fitting: 20 bytes for each pair of items."""


class EASE(CatalogueScorer[EASEConfig]):
    """Scores are the weighted history times B."""

    def __init__(self, config: EASEConfig | None = None) -> None:
        super().__init__(config or EASEConfig())
        self._weights_II: Floats = np.empty((0, 0), dtype=np.float32)
        self._met_I = np.empty(0, dtype=np.bool_)

    @classmethod
    def config_kind(cls) -> type[EASEConfig]:
        """The class of `config`."""
        return EASEConfig

    def learn(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Solve for B.

        Raises:
            TowerlineError: the catalogue is too large for the memory limit.
        """
        need = BYTES_PER_PAIR * (vocabulary.num_items + 1) ** 2 / 2**30
        if need > self.config.memory_limit_gib:
            most = int((self.config.memory_limit_gib * 2**30 / BYTES_PER_PAIR) ** 0.5) - 1
            raise TowerlineError(
                f"EASE needs {need:,.1f} GiB for {vocabulary.num_items:,} items, memory_limit_gib is "
                f"{self.config.memory_limit_gib:g} ({most:,} items); raise it, or use item_item or ials, whose memory "
                "grows with the events"
            )
        met_UI = interactions(events, vocabulary)
        self._weights_II = solve(met_UI, self.config.regularization)
        self._met_I = met_UI.sum(axis=0) > 0

    def scores(self, rows: pl.DataFrame) -> Floats:
        """What the history predicts for each item (B, I + 1)."""
        history_BI = histories(rows, self.vocabulary, self.config.history_half_life)
        scores_BI = np.asarray(history_BI @ self._weights_II, dtype=np.float32)
        return last_if_never_met(scores_BI, self._met_I)

    def similarities(self, items: Codes) -> Floats:
        """What each of N items says for every other (N, I + 1); -inf for nothing, or against it."""
        weights_NI = self._weights_II[items]
        return np.where(weights_NI > 0, weights_NI, np.float32(-np.inf))

    def weights(self) -> dict[str, Tensor]:
        """B, and which items have events."""
        return {"weights_II": torch.from_numpy(self._weights_II), "met_I": torch.from_numpy(self._met_I)}

    def take(self, weights: dict[str, Tensor]) -> None:
        """Become what `weights` was called on."""
        self._weights_II, self._met_I = weights["weights_II"].numpy(), weights["met_I"].numpy()


def solve(met_UI: scipy.sparse.csr_array, regularization: float) -> Floats:
    """B (I, I) of the interactions, solved in float64."""
    gram_II = torch.zeros((met_UI.shape[1], met_UI.shape[1]), dtype=torch.float64)
    met_IU = scipy.sparse.csr_array(met_UI.T)
    for start in range(0, met_UI.shape[1], ROWS_AT_ONCE):
        rows = (met_IU[start : start + ROWS_AT_ONCE] @ met_UI).toarray()
        gram_II[start : start + ROWS_AT_ONCE] = torch.from_numpy(rows)
    gram_II.diagonal().add_(regularization)
    torch.linalg.cholesky(gram_II, out=gram_II)
    inverse_II = torch.cholesky_inverse(gram_II)
    del gram_II
    inverse_II /= -inverse_II.diagonal().clone()
    inverse_II.diagonal().zero_()
    weights_II: Floats = inverse_II.to(torch.float32, memory_format=torch.contiguous_format).numpy()
    return weights_II
