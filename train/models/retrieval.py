"""A retrieval model that can be used and kept: two-tower weights, config, vocabulary and co-visitation as one."""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse
import torch
from torch import Tensor

from data.schema import ATTRIBUTES, ITEM_ID
from train.encoding import UserBatch, encode_attributes, encode_users
from train.index import Codes, ExactIndex, Floats
from train.models.ensemble import Ensemble, Found, Run
from train.models.files import load_files, save_files
from train.models.two_tower import TwoTower, TwoTowerConfig
from train.vocabulary import Vocabulary, title_tokens

COVISITATION_FILE = "covisitation.npz"
SOURCES_FOLDER = "sources"
MAX_ITEM_TOKENS = 48
"""Attributes and words of the title read per item; of more the last ones."""


class RetrievalModel:
    """The two-tower as a function from feature rows to vectors, on the CPU, with what its events say of item pairs."""

    def __init__(
        self,
        config: TwoTowerConfig,
        vocabulary: Vocabulary,
        weights: dict[str, Tensor],
        covisitation: scipy.sparse.csr_array,
        ensemble: Ensemble | None = None,
    ) -> None:
        """`covisitation` (I, I) comes from the same events as the weights (see `train.models.covisitation`).

        `ensemble`: the sources beside it, fitted on the same events; no other source if None.
        """
        self.config = config
        self.vocabulary = vocabulary
        self.covisitation = covisitation
        self.ensemble = ensemble or Ensemble()
        self.network = TwoTower(config, vocabulary, torch.empty_like(weights["item_attributes_IA"]))
        self.network.load_state_dict(weights)
        self.network.eval()
        self._encoded: tuple[pl.DataFrame, UserBatch] | None = None

    @cached_property
    def item_vectors_ID(self) -> npt.NDArray[np.float32]:
        """float32 vectors of every item code, bias last; row `UNKNOWN` is that of an item nothing is known of."""
        with torch.inference_mode():
            vectors: npt.NDArray[np.float32] = self.network.encode_items().numpy()
        return vectors

    @cached_property
    def index(self) -> ExactIndex:
        """Search over the catalogue the model was trained with."""
        return ExactIndex(self.item_vectors_ID)

    def with_ensemble(self, ensemble: Ensemble) -> "RetrievalModel":
        """The same two-tower beside other sources. They were fitted on the events that it was trained on."""
        other = copy.copy(self)
        other.ensemble = ensemble
        return other

    def find(self, rows: pl.DataFrame, exclude: Sequence[Codes], count: int, run: Run = map) -> Found:
        """Candidates of B feature rows, as `Ensemble.find` says."""
        return self.ensemble.find(self.scores, rows, exclude, count, run)

    def source_scores(self, rows: pl.DataFrame, codes_BK: Codes) -> Floats:
        """What each source thinks (B, K, S) of K candidates, as `Found.sources_BKS`."""
        return self.ensemble.score(self.scores, rows, codes_BK)

    def scores(self, rows: pl.DataFrame) -> Floats:
        """The two-tower's scores (B, I + 1) of all item codes for B feature rows."""
        return self.index.scores(self.encode_users(rows))

    def encode_users(self, rows: pl.DataFrame) -> npt.NDArray[np.float32]:
        """User vectors (B, D + 1) of B feature rows (see `train.encoding.encode_users`)."""
        return self.vectors_of(self.encoded(rows))

    def encoded(self, rows: pl.DataFrame) -> UserBatch:
        """Feature rows as the user tower reads them. The last are kept: the ranker asks for those of the retrieval."""
        kept = self._encoded
        if kept is None or kept[0] is not rows:
            kept = self._encoded = rows, encode_users(rows, self.vocabulary, self.config.history_length)
        return kept[1]

    def vectors_of(self, users: UserBatch) -> npt.NDArray[np.float32]:
        """User vectors (B, D + 1) of B encoded users: the user tower itself."""
        with torch.inference_mode():
            vectors: npt.NDArray[np.float32] = self.network.encode_users(
                users, torch.from_numpy(self.item_vectors_ID)
            ).numpy()
        return vectors

    def similar_items(self, code: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The `count` items nearest to one by cosine of their vectors (popularity bias left out), and the cosines."""
        query_1D = self.item_directions_ID[code : code + 1]
        exclude = [np.array([code], dtype=np.int64)]
        codes_1K, cosines_1K = ExactIndex(self.item_directions_ID).search(query_1D, count, exclude)
        return codes_1K[0], cosines_1K[0]

    @cached_property
    def item_directions_ID(self) -> npt.NDArray[np.float32]:
        """The item vectors without their bias, scaled to unit length."""
        vectors_ID = self.item_vectors_ID[:, :-1]
        unit_ID: npt.NDArray[np.float32] = vectors_ID / np.maximum(
            np.linalg.norm(vectors_ID, axis=1, keepdims=True), np.float32(1e-9)
        )
        return unit_ID

    def save(self, folder: Path) -> None:
        """Write the model into an existing folder."""
        save_files(folder, self.config, self.vocabulary, self.network.state_dict())
        scipy.sparse.save_npz(folder / COVISITATION_FILE, self.covisitation)
        (folder / SOURCES_FOLDER).mkdir(exist_ok=True)
        self.ensemble.save(folder / SOURCES_FOLDER)

    @classmethod
    def load(cls, folder: Path, item_vectors_ID: npt.NDArray[np.float32] | None = None) -> "RetrievalModel":
        """Read what `save` wrote. `item_vectors_ID`: the item tower's output, where it has been kept."""
        covisitation = scipy.sparse.csr_array(scipy.sparse.load_npz(folder / COVISITATION_FILE))
        config, vocabulary, weights = load_files(folder, TwoTowerConfig)
        ensemble = Ensemble.load(folder / SOURCES_FOLDER, vocabulary)
        model = cls(config, vocabulary, weights, covisitation, ensemble)
        if item_vectors_ID is not None:
            model.item_vectors_ID = item_vectors_ID
        return model


def item_attribute_codes(items: pl.DataFrame, vocabulary: Vocabulary) -> Tensor:
    """Codes (I, A), int32, of the attributes and title words of every item code; items that no table lists have none.

    A is the largest number of tokens that any item has, `MAX_ITEM_TOKENS` at most.
    """
    catalogue = pl.DataFrame({ITEM_ID: ["", *vocabulary.items]})
    words = items.select(ITEM_ID, tokens=pl.concat_list(ATTRIBUTES, title_tokens(items)))
    tokens = catalogue.join(words, on=ITEM_ID, how="left", maintain_order="left")["tokens"]
    longest = tokens.list.len().max()
    assert longest is None or isinstance(longest, int)
    width = min(max(longest or 0, 1), MAX_ITEM_TOKENS)
    return encode_attributes(tokens, vocabulary.item_attribute_codes, width)
