"""A variant: user tower, index, ranker and vocabulary that were made for each other, used and swapped as one."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import polars as pl

from data.features import ITEM_FEATURE_COLUMNS
from data.schema import ATTRIBUTES, ITEM_ID, TITLE
from serve.batch import Codes, Floats
from serve.edition import Edition
from serve.new_items import NONE, NewItems
from train.card import Kind, ModelCard
from train.models.ensemble import Found, Run
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.models.shards import Nominated, Shard, elect
from train.registry import LoadedModels
from train.vocabulary import UNKNOWN, Vocabulary


class Catalogue:
    """The items that a variant can recommend, by code: 1 and up; 0 (`UNKNOWN`) is none of them."""

    def __init__(self, vocabulary: Vocabulary, items: pl.DataFrame) -> None:
        """`items`: item_id, title, attributes; one that has no row there is known by its id alone."""
        listed = pl.DataFrame({ITEM_ID: vocabulary.items}, schema={ITEM_ID: pl.String}).join(
            items.select(ITEM_ID, TITLE, ATTRIBUTES), on=ITEM_ID, how="left", maintain_order="left"
        )
        self._vocabulary = vocabulary
        self._titles: list[str | None] = listed[TITLE].to_list()
        self._attributes: list[list[str] | None] = listed[ATTRIBUTES].to_list()

        ids = np.array(["", *vocabulary.items], dtype=np.object_)
        self._rank_by_id_I = np.empty(len(ids), np.int64)
        self._rank_by_id_I[np.argsort(ids, kind="stable")] = np.arange(len(ids))

    def __len__(self) -> int:
        return self._vocabulary.num_items

    def best_first(self, scores_BK: Floats, codes_BK: Codes) -> Codes:
        """The order (B, K) that sorts each row by score; ties go to the smaller item id, empty slots are last."""
        scores_BK = np.where(codes_BK == UNKNOWN, -np.inf, scores_BK)
        order_BK: Codes = np.lexsort((self._rank_by_id_I[codes_BK], codes_BK == UNKNOWN, -scores_BK), axis=1)
        return order_BK

    def code(self, item_id: str) -> int:
        """The code of an item; `UNKNOWN` for one that the variant does not know."""
        return self._vocabulary.item_code(item_id)

    def codes(self, item_ids: Iterable[str]) -> Codes:
        """The codes of those of the items that the variant knows."""
        return np.array([code for code in map(self._vocabulary.item_codes.get, item_ids) if code], np.int64)

    def item_id(self, code: int) -> str:
        """The id behind a code."""
        return self._vocabulary.items[code - 1]

    def title(self, code: int) -> str | None:
        """The item's title, if it has one."""
        return self._titles[code - 1]

    def attributes(self, code: int) -> Sequence[str]:
        """The item's `name=value` tokens."""
        return self._attributes[code - 1] or ()


class Variant:
    """What the stages ask of the models. B users, D dimensions, K candidates, F features."""

    def __init__(
        self,
        *,
        name: str,
        versions: Mapping[str, str],
        history_length: int,
        retrieval: RetrievalModel,
        ranking: RankingModel,
        items: pl.DataFrame,
        cards: Mapping[Kind, ModelCard],
        new_items: NewItems = NONE,
    ) -> None:
        """`name` and `versions` (model name to version) go into every answer; `items` names the catalogue.

        `history_length` is the number of past events that the models' features carry; `cards` say where they come from.
        `new_items`: those that the models know by their content alone, the last of the catalogue.
        """
        self.name = name
        self.new_items = new_items
        self.versions = dict(versions)
        self.cards = dict(cards)
        self.catalogue = Catalogue(retrieval.vocabulary, items)
        self.history_length = history_length
        self._retrieval = retrieval
        self._ranking = ranking
        ranking.require_sources(retrieval)

    @classmethod
    def of(cls, models: LoadedModels, new_items: NewItems = NONE) -> "Variant":
        """The variant that the registry's models make up, with items that came after their training."""
        models = models.with_items(new_items.table)
        versions = {str(kind): version for kind, version in models.versions.items()}
        return cls(
            name=models.variant,
            versions=versions,
            history_length=models.cards["two-tower"].history_length,
            retrieval=models.retrieval,
            ranking=models.ranking,
            items=models.items,
            cards=models.cards,
            new_items=new_items,
        )

    @property
    def edition(self) -> Edition:
        """What answers."""
        return Edition(self.name, self.new_items.digest)

    @property
    def finders(self) -> Sequence[str]:
        """The sources that name candidates."""
        return self._retrieval.ensemble.config.finders

    @property
    def num_scorers(self) -> int:
        """How many sources score a candidate list, the two-tower included."""
        return 1 + len(self._retrieval.ensemble.config.names)

    def choose_index(self) -> None:
        """Have ready what searches the catalogue. For a large one this takes a while."""
        _ = self._retrieval.index

    def find(self, users: pl.DataFrame, exclude: Sequence[Codes], count: int, run: Run) -> Found:
        """The best items for B rows of user features, none of those excluded for its row; `run` calls the sources."""
        return self._retrieval.find(users, exclude, count, run)

    def shard(self, number: int, shards: int) -> Shard:
        """A part of the catalogue, to retrieve from."""
        return Shard(self._retrieval, number, shards)

    def elect(self, nominated: Sequence[Nominated], count: int) -> Found:
        """What `find` would have found, from what all shards nominated."""
        return elect(self._retrieval.ensemble, nominated, count, len(self.catalogue))

    def rank(
        self,
        users: pl.DataFrame,
        codes_BK: Codes,
        scores_BK: Floats,
        sources_BKS: Floats | None,
        *,
        items: pl.DataFrame,
        rows_BK: Codes,
    ) -> Floats:
        """Ranking scores (B, K) of candidates in retrieval order with their retrieval scores and those by source.

        The sources are asked here if `sources_BKS` is None. `items` has the features of items, `rows_BK` the row of
        each candidate among them.
        """
        features_NF = np.column_stack([items.get_column(name).to_numpy() for name in ITEM_FEATURE_COLUMNS])
        features_BKF = features_NF.astype(np.float32)[rows_BK]
        return self._ranking.score(users, codes_BK, scores_BK, features_BKF, self._retrieval, sources_BKS=sources_BKS)

    def directions(self, codes_BK: Codes) -> Floats:
        """Item vectors (B, K, D) of unit length, the popularity bias left out."""
        return self._retrieval.item_directions_ID[codes_BK]

    def popular(self, count: int) -> tuple[Codes, Floats]:
        """The items of most training events, best first: codes and scores (K), the logarithms of 1 + their number."""
        codes_I, scores_I = self._by_popularity
        return codes_I[:count], scores_I[:count]

    @cached_property
    def _by_popularity(self) -> tuple[Codes, Floats]:
        scores_I = np.log1p(self._retrieval.network.item_frequency_I.numpy()).astype(np.float32)[np.newaxis, 1:]
        codes_I = np.arange(1, scores_I.shape[1] + 1)[np.newaxis]
        order_I = self.catalogue.best_first(scores_I, codes_I)[0]
        return codes_I[0, order_I], scores_I[0, order_I]

    def similar(self, code: int, count: int) -> tuple[list[int], list[float]]:
        """Codes and cosine similarities of the items nearest to one, itself left out, best first."""
        codes_K, cosines_K = self._retrieval.similar_items(code, count)
        found = [(code, cosine) for code, cosine in zip(codes_K.tolist(), cosines_K.tolist(), strict=True) if code]
        return [code for code, _ in found], [cosine for _, cosine in found]
