"""A retrieval model that can be used and kept: two-tower weights, config, vocabulary and co-visitation as one."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse
import torch
from torch import Tensor

from data.schema import ATTRIBUTES, ITEM_ID
from train.encoding import MAX_ATTRIBUTES, UserBatch, encode_attributes, encode_users
from train.index import Codes, ExactIndex, Floats, Index
from train.models.ensemble import Ensemble, Found, Run
from train.models.files import load_files, save_files
from train.models.growth import grown_vocabulary, resized, stacked_codes, with_rows
from train.models.two_tower import TwoTower, TwoTowerConfig
from train.vocabulary import UNKNOWN, Vocabulary, title_tokens

COVISITATION_FILE = "covisitation.npz"
SOURCES_FOLDER = "sources"
MAX_ITEM_TOKENS = 48
"""Attributes and words of the title read per item; of more the last ones."""
TABLES_BY_ITEM = ("item.weight", "popularity.weight", "item_frequency_I")
"""Weights of a two-tower that have a row for each item code, the codes of its content aside."""


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
        self.make_index: Callable[[RetrievalModel], Index] = _exact
        self._encoded: tuple[pl.DataFrame, UserBatch] | None = None

    @cached_property
    def item_vectors_ID(self) -> npt.NDArray[np.float32]:
        """float32 vectors of every item code, bias last; row `UNKNOWN` is that of an item nothing is known of."""
        with torch.inference_mode():
            vectors: npt.NDArray[np.float32] = self.network.encode_items().numpy()
        return vectors

    @cached_property
    def index(self) -> Index:
        """Search over all its items, as `make_index` makes it when it is first asked for."""
        return self.make_index(self)

    def with_ensemble(self, ensemble: Ensemble) -> "RetrievalModel":
        """The same two-tower beside other sources. They were fitted on the events that it was trained on."""
        other = copy.copy(self)
        other.ensemble = ensemble
        return other

    def with_items(self, items: pl.DataFrame) -> "RetrievalModel":
        """The same model with these items after its own: item_id, title, attributes.

        They are placed by their content alone, as items without an event are in training. All others stay where they
        are; the sources beside the two-tower have learnt nothing of the new ones.
        """
        vocabulary = grown_vocabulary(self.vocabulary, items)
        known, size = self.vocabulary.num_items + 1, vocabulary.num_items + 1
        weights = with_rows(self.network.state_dict(), TABLES_BY_ITEM, items.height)
        codes_NA = content_codes(items, self.vocabulary)
        weights["item_attributes_IA"] = stacked_codes(self.network.item_attributes_IA, codes_NA)
        ensemble = self.ensemble.with_room(vocabulary.num_items)
        model = RetrievalModel(self.config, vocabulary, weights, resized(self.covisitation, size), ensemble)
        with torch.inference_mode():
            new_ND = model.network.encode_items(torch.arange(known, size)).numpy()
        model.item_vectors_ID = np.concatenate([self.item_vectors_ID, new_ND])
        model.make_index = lambda grown: self.index.grown(grown.item_vectors_ID)
        return model

    def find(self, rows: pl.DataFrame, exclude: Sequence[Codes], count: int, run: Run = map) -> Found:
        """Candidates of B feature rows, as `Ensemble.find` says."""
        search = None if isinstance(self.index, ExactIndex) else self._search
        return self.ensemble.find(self.scores, rows, exclude, count, run, search=search)

    def source_scores(self, rows: pl.DataFrame, codes_BK: Codes) -> Floats:
        """What each source thinks (B, K, S) of K candidates, as `Found.sources_BKS`."""
        return self.ensemble.score(self.scores, rows, codes_BK)

    def scores(self, rows: pl.DataFrame) -> Floats:
        """The two-tower's scores (B, I + 1) of all item codes for B feature rows."""
        return ExactIndex(self.item_vectors_ID).scores(self.encode_users(rows))

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

    def imagined_users(self, count: int, seed: int = 0) -> UserBatch:
        """Users to measure a search with: the items of their histories are drawn by how often training chose them."""
        random, length = np.random.default_rng(seed), self.config.history_length
        weights_I = self.network.item_frequency_I.double().numpy() + 1e-9
        weights_I[UNKNOWN] = 0
        history_BL = random.choice(len(weights_I), (count, length), p=weights_I / weights_I.sum())
        return UserBatch(
            history_BL=torch.from_numpy(history_BL.astype(np.int32)),
            history_values_BL=torch.ones(count, length, dtype=torch.int8),
            history_types_BL=torch.full((count, length), min(1, len(self.vocabulary.event_types)), dtype=torch.int16),
            history_ages_BL=torch.arange(length, 0, -1).mul(3600.0).repeat(count, 1),
            attributes_BA=torch.zeros(count, MAX_ATTRIBUTES, dtype=torch.int32),
        )

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

    def _search(self, rows: pl.DataFrame, exclude: Sequence[Codes], count: int) -> tuple[Codes, Floats]:
        return self.index.search(self.encode_users(rows), count, exclude)

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


def _exact(model: RetrievalModel) -> Index:
    return ExactIndex(model.item_vectors_ID)


def item_attribute_codes(items: pl.DataFrame, vocabulary: Vocabulary) -> Tensor:
    """Codes (I, A), int32, of the attributes and title words of every item code; items that no table lists have none.

    A is the largest number of tokens that any item has, `MAX_ITEM_TOKENS` at most.
    """
    catalogue = pl.DataFrame({ITEM_ID: ["", *vocabulary.items]})
    listed = items.select(ITEM_ID, _tokens(items))
    return _token_codes(catalogue.join(listed, on=ITEM_ID, how="left", maintain_order="left")["tokens"], vocabulary)


def content_codes(items: pl.DataFrame, vocabulary: Vocabulary) -> Tensor:
    """Codes (N, A), int32, of the attributes and title words of N items, as `item_attribute_codes` of known ones."""
    return _token_codes(_tokens(items), vocabulary)


def _tokens(items: pl.DataFrame) -> pl.Series:
    return items.select(tokens=pl.concat_list(ATTRIBUTES, title_tokens(items))).to_series()


def _token_codes(tokens: pl.Series, vocabulary: Vocabulary) -> Tensor:
    longest = tokens.list.len().max()
    assert longest is None or isinstance(longest, int)
    width = min(max(longest or 0, 1), MAX_ITEM_TOKENS)
    return encode_attributes(tokens, vocabulary.item_attribute_codes, width)
