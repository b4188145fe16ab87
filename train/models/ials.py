"""Matrix factorisation of implicit feedback by alternating least squares.

Hu, Koren & Volinsky, "Collaborative filtering for implicit feedback datasets" (ICDM 2008), with the regularisation
scaled by frequency of Rendle et al., "Revisiting the performance of iALS on item recommendation benchmarks" (RecSys
2022). Only item factors are kept: whoever asks is folded in from the history, met before or not.
"""

import math
from typing import Annotated, Literal

import numpy as np
import polars as pl
import scipy.sparse
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from train.index import Codes, Floats
from train.models.catalogue_scorer import CatalogueScorer, last_if_never_met
from train.models.ials_blocks import OtherSide, Penalty, Solver, in_process, where_there_is_room
from train.models.interactions import histories, interactions
from train.vocabulary import Vocabulary

INITIAL_SCALE = 0.1
"""Standard deviation of the initial scores' factors, over the square root of their number."""


class IALSConfig(BaseModel):
    """The loss and how long it is minimised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ials"] = "ials"
    embedding_dim: PositiveInt = 64
    """Factors of a user and of an item."""
    iterations: PositiveInt = 8
    """Times that all users and then all items are solved for."""
    unobserved_weight: PositiveFloat = 0.3
    """α₀: weight of the squared score of every pair of a user and an item; an event weighs 1."""
    regularization: PositiveFloat = 0.01
    """λ of users and items."""
    frequency_exponent: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1 holds back who has more events by as much more, 0 everybody alike."""
    history_half_life: PositiveFloat | None = 4.0
    """An event of the history that is so many events older than another has half its weight; none: all the same."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the initial factors."""


class IALS(CatalogueScorer[IALSConfig]):
    """Scores are inner products with the user's factors."""

    def __init__(self, config: IALSConfig | None = None, solver: Solver = where_there_is_room) -> None:
        """`solver`: where the half-steps of `fit` are computed."""
        super().__init__(config or IALSConfig())
        self._solver = solver
        self._items_ID = torch.empty((0, self.config.embedding_dim))
        self._items = OtherSide(self._items_ID, self._items_ID.T @ self._items_ID, 0)
        self._exact: tuple[OtherSide, OtherSide] | None = None

    @classmethod
    def config_kind(cls) -> type[IALSConfig]:
        """The class of `config`."""
        return IALSConfig

    @property
    def penalty(self) -> Penalty:
        """The loss, as the half-steps read it."""
        config = self.config
        return Penalty(config.unobserved_weight, config.regularization, config.frequency_exponent)

    def learn(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Alternate between users and items."""
        met_UI = interactions(events, vocabulary)
        met_IU = scipy.sparse.csr_array(met_UI.T)
        num_items = int(np.count_nonzero(np.diff(met_IU.indptr)))
        users_of, items_of = self._solver(met_UI, self.penalty), self._solver(met_IU, self.penalty)
        items_ID = self._initial(met_IU)
        for _ in range(self.config.iterations):
            users_UD = users_of(OtherSide.of(items_ID, num_items, self.penalty))
            items_ID = items_of(OtherSide.of(users_UD, met_UI.shape[0], self.penalty))
        self._items = OtherSide.of(items_ID, num_items, self.penalty)

    def scores(self, rows: pl.DataFrame) -> Floats:
        """Inner products (B, I + 1) of the item factors and of what the history gives for the user."""
        items = self._exact_items
        users_BD = self._folded_in(rows, items)
        scores_BI: Floats = (users_BD @ items.factors_ND.T).to(torch.float32).numpy()
        return last_if_never_met(scores_BI, items.factors_ND.any(dim=1).numpy())

    def fold_in(self, rows: pl.DataFrame) -> Tensor:
        """The factors (B, D) of the users of B feature rows; zero for an empty history."""
        return self._folded_in(rows, self._items)

    def _folded_in(self, rows: pl.DataFrame, items: OtherSide) -> Tensor:
        history_BI = histories(rows, self.vocabulary, self.config.history_half_life)
        users_BD: Tensor = in_process(history_BI, self.penalty)(items)
        return users_BD

    @property
    def _exact_items(self) -> OtherSide:
        """In float64: a user's scores, and so the places of near items, do not depend on who else asks."""
        if self._exact is None or self._exact[0] is not self._items:
            factors_ND = self._items.factors_ND.double()
            self._exact = self._items, OtherSide.of(factors_ND, self._items.size, self.penalty)
        return self._exact[1]

    def similarities(self, items: Codes) -> Floats:
        """Cosines (N, I + 1) of item factors; -inf for items without events."""
        factors_ID = self._items.factors_ND
        norms_I = factors_ID.norm(dim=1)
        directions_ID = factors_ID / norms_I.clamp(min=torch.finfo().tiny).unsqueeze(1)
        cosines_NI = directions_ID[items] @ directions_ID.T
        nothing_NI = (norms_I[items] == 0).unsqueeze(1) | (norms_I == 0)
        similarity_NI: Floats = cosines_NI.masked_fill(nothing_NI, -torch.inf).numpy()
        return similarity_NI

    def weights(self) -> dict[str, Tensor]:
        """The item factors."""
        return {"items_ID": self._items.factors_ND, "size": torch.tensor(self._items.size)}

    def take(self, weights: dict[str, Tensor]) -> None:
        """Become what `weights` was called on."""
        self._items = OtherSide.of(weights["items_ID"], int(weights["size"]), self.penalty)

    def _initial(self, met_IU: scipy.sparse.csr_array) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.seed)
        dim = self.config.embedding_dim
        items_ID = torch.randn((met_IU.shape[0], dim), generator=generator) * (INITIAL_SCALE / math.sqrt(dim))
        items_ID[torch.from_numpy(np.diff(met_IU.indptr) == 0)] = 0
        return items_ID
