"""Several retrieval sources at once: who finds a user's candidates, and what each source thinks of every one of them.

The two-tower is one source; the others (`train.models.sources`) are fitted on the events that it was trained on. Their
scores are for the ranker, which learns how much each is worth; they may also find candidates beside the two-tower.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveFloat, PositiveInt

from cluster.errors import TowerlineError
from train.index import Codes, Floats, top_items, without
from train.models.blending import reciprocal_ranks, union
from train.models.catalogue_scorer import SCORES_AT_ONCE
from train.models.sources import SOURCES, Source, SourceConfig, new_source
from train.vocabulary import UNKNOWN, Vocabulary

TWO_TOWER = "two_tower"
ENSEMBLE_FILE = "ensemble.json"

Scorer = Callable[[pl.DataFrame], Floats]
"""Feature rows to scores (B, I + 1) of every item code, in an array of the caller's own."""
Run = Callable[[Callable[[Scorer], Floats], Iterable[Scorer]], Iterator[Floats]]
"""`map`, or the same on several threads."""
Search = Callable[[pl.DataFrame, Sequence[Codes], int], tuple[Codes, Floats]]
"""Feature rows, what is excluded for each, and how many: the best item codes and their scores (`train.index.Index`)."""


class CandidatesConfig(BaseModel):
    """Who finds the candidates that the ranker puts in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blend: Literal["none", "reciprocal_rank"] = "none"
    """The two-tower alone, or it and every source by reciprocal rank fusion (Cormack et al., SIGIR 2009)."""
    depth: PositiveInt = 100
    """Items that each of them names, where they are blended."""
    rank_constant: PositiveFloat = 60.0
    """k: place r of the blended is worth 1 / (k + r)."""


def _each_once(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
    kinds = [source.kind for source in sources]
    if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"sources names {', '.join(repeated)} more than once; keep one of each kind")
    return sources


SourceConfigs = Annotated[tuple[SourceConfig, ...], AfterValidator(_each_once)]
"""One for each source beside the two-tower, each of another kind."""


class EnsembleConfig(BaseModel):
    """The sources beside the two-tower, in the order of their scores, and what they are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: SourceConfigs = ()
    candidates: CandidatesConfig = CandidatesConfig()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources beside the two-tower."""
        return tuple(source.kind for source in self.sources)

    @property
    def finders(self) -> tuple[str, ...]:
        """Who names candidates."""
        return (TWO_TOWER, *self.names) if self.candidates.blend != "none" else (TWO_TOWER,)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Whose scores the ranker reads: of all sources, and of the two-tower unless it orders the list by itself."""
        return (TWO_TOWER, *self.names) if len(self.finders) > 1 else self.names


@dataclass(frozen=True)
class Found:
    """Candidates of B users. K each, best first; S source scores."""

    codes_BK: Codes
    """Item codes; `UNKNOWN` where the sources ran out of items."""
    scores_BK: Floats
    """Of the first stage, by which they are ordered; -inf where there is no candidate."""
    sources_BKS: Floats
    """What each of `EnsembleConfig.score_names` thinks of them, in units of its own; -inf where there is none."""
    named_BN: npt.NDArray[np.int64]
    """How many of the candidates each of `EnsembleConfig.finders` named."""


class Ensemble:
    """Fitted sources beside a two-tower; none at all by default."""

    def __init__(
        self, config: EnsembleConfig | None = None, fitted: Sequence[Source] = (), num_items: int | None = None
    ) -> None:
        """`fitted`: one source for each of `config.sources`, in their order.

        `num_items`: of the two-tower, where it knows items after those that the sources were fitted with.
        """
        self.config = config or EnsembleConfig()
        self._fitted = dict(zip(self.config.names, fitted, strict=True))
        self._num_items = num_items

    @classmethod
    def fit(cls, config: EnsembleConfig, events: pl.DataFrame, vocabulary: Vocabulary) -> Self:
        """Fit every source on these events: columns of `data.dataset.STORED_EVENTS` and `sequence`.

        Raises:
            TowerlineError: a source cannot learn from them, as EASE where the catalogue is too large for it.
        """
        fitted = [new_source(source) for source in config.sources]
        for source in fitted:
            source.fit(events, vocabulary)
        return cls(config, fitted)

    def with_room(self, num_items: int) -> "Ensemble":
        """The same sources beside a two-tower that knows so many items. They know nothing of the further ones."""
        return Ensemble(self.config, tuple(self._fitted.values()), num_items)

    def find(
        self,
        two_tower: Scorer,
        rows: pl.DataFrame,
        exclude: Sequence[Codes],
        count: int,
        run: Run = map,
        *,
        search: Search | None = None,
    ) -> Found:
        """The `count` best candidates for B feature rows, none of those excluded for its row; ties by item code.

        K is `count` or the catalogue's size, whichever is smaller. `run` calls the scorers, which do not depend on
        each other. `search`: what the two-tower finds candidates by, where it finds them alone; by its scores if None.
        """
        chunks = list(self._chunks(rows.height))
        if len(chunks) == 1:
            return self._find(two_tower, rows, exclude, count, run, search=search)
        parts = [self._find(two_tower, rows[some], exclude[some], count, run, search=search) for some in chunks]
        columns = zip(
            *((part.codes_BK, part.scores_BK, part.sources_BKS, part.named_BN) for part in parts), strict=True
        )
        return Found(*map(np.concatenate, columns))

    def score(self, two_tower: Scorer, rows: pl.DataFrame, codes_BK: Codes) -> Floats:
        """Scores (B, K, S) of K candidates for each of B feature rows, as `Found.sources_BKS`."""
        scorers = self.scorers(two_tower)
        wanted = [scorers[name] for name in self.config.score_names]
        parts = [
            scores_at([without(score(rows[some]), ()) for score in wanted], codes_BK[some])
            for some in self._chunks(rows.height)
        ]
        return np.concatenate(parts)

    def save(self, folder: Path) -> None:
        """Write all sources, each into a folder of its name, and the configuration into an existing folder."""
        for name, source in self._fitted.items():
            (folder / name).mkdir(exist_ok=True)
            source.save_beside(folder / name)
        (folder / ENSEMBLE_FILE).write_text(self.config.model_dump_json(indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, vocabulary: Vocabulary) -> Self:
        """Read what `save` wrote; `vocabulary`: the one that the sources were fitted with.

        Raises:
            TowerlineError: a file is missing, cut short, or of another kind of source.
        """
        try:
            config = EnsembleConfig.model_validate_json((folder / ENSEMBLE_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise TowerlineError(f"{folder / ENSEMBLE_FILE} cannot be read: {error}; train the model again") from error
        return cls(config, [SOURCES[name].load_beside(folder / name, vocabulary) for name in config.names])

    def scorers(self, two_tower: Scorer) -> dict[str, Scorer]:
        """All that score the catalogue, by name: the two-tower and the sources beside it."""
        if self._num_items is None:
            return {TWO_TOWER: two_tower, **{name: source.scores for name, source in self._fitted.items()}}
        widened = {name: _widened(source.scores, self._num_items + 1) for name, source in self._fitted.items()}
        return {TWO_TOWER: two_tower, **widened}

    def _find(
        self,
        two_tower: Scorer,
        rows: pl.DataFrame,
        exclude: Sequence[Codes],
        count: int,
        run: Run,
        *,
        search: Search | None,
    ) -> Found:
        scorers = self.scorers(two_tower)
        alone = self.config.finders == (TWO_TOWER,)
        if alone and search is not None:
            del scorers[TWO_TOWER]
        scored = dict(zip(scorers, run(lambda score: without(score(rows), exclude), scorers.values()), strict=True))
        return self.select(scored, count, search(rows, exclude, count) if alone and search is not None else None)

    def select(self, scored: Mapping[str, Floats], count: int, best: tuple[Codes, Floats] | None = None) -> Found:
        """The `count` best by scores (B, I + 1) of all item codes by each of `scorers`, -inf for what is excluded.

        `best`: codes and scores of the two-tower's, where it finds them alone and has done so already.
        """
        if self.config.finders == (TWO_TOWER,):
            codes_BK, scores_BK = top_items(scored[TWO_TOWER], count) if best is None else best
            named_BN = (codes_BK != UNKNOWN).sum(axis=1, keepdims=True)
        else:
            found_by = [scored[name] for name in self.config.finders]
            named = [top_items(scores_BI, self.config.candidates.depth)[0] for scores_BI in found_by]
            codes_BK, scores_BK = self._fused(found_by, named, count)
            named_BN = _shared(named, codes_BK)
        sources_BKS = scores_at([scored[name] for name in self.config.score_names], codes_BK)
        return Found(codes_BK, scores_BK, sources_BKS, named_BN)

    def _fused(self, scored: list[Floats], named: list[Codes], count: int) -> tuple[Codes, Floats]:
        """The best `count` of all that are named (B, K), and what they are worth by reciprocal rank fusion."""
        config = self.config.candidates
        union_BU = union(named)
        worth_BU = np.zeros(union_BU.shape)
        for opinion_BU in np.moveaxis(scores_at(scored, union_BU), 2, 0):
            worth_BU += reciprocal_ranks(opinion_BU, config.depth, config.rank_constant)
        worth_BU[union_BU == UNKNOWN] = -np.inf
        shape = (len(union_BU), min(count, scored[0].shape[1] - 1))
        best_first_BK = np.argsort(-worth_BU, axis=1, kind="stable")[:, : shape[1]]
        codes_BK = np.full(shape, UNKNOWN, dtype=np.int64)
        scores_BK = np.full(shape, -np.inf, dtype=np.float32)
        found = best_first_BK.shape[1]
        codes_BK[:, :found] = np.take_along_axis(union_BU, best_first_BK, axis=1)
        scores_BK[:, :found] = np.take_along_axis(worth_BU, best_first_BK, axis=1)
        return codes_BK, scores_BK

    def _chunks(self, rows: int) -> Iterator[slice]:
        numbers = sum(source.vocabulary.num_items + 1 for source in self._fitted.values())
        step = max(1, SCORES_AT_ONCE // max(numbers, 1))
        return (slice(start, start + step) for start in range(0, max(rows, 1), step))


def _widened(score: Scorer, size: int) -> Scorer:
    """Scores of `size` item codes; of one that the source does not know, the lowest that it gives to any item."""

    def scores(rows: pl.DataFrame) -> Floats:
        known_BI = score(rows)
        lowest_B1 = known_BI[:, UNKNOWN + 1 :].min(axis=1, keepdims=True)
        return np.hstack([known_BI, np.repeat(lowest_B1, size - known_BI.shape[1], axis=1)])

    return scores


def scores_at(scored: Sequence[Floats], codes_BK: Codes) -> Floats:
    """The scores (B, K, N) of some items by each of N scorers."""
    empty = np.empty((*codes_BK.shape, 0), dtype=np.float32)
    return np.stack([np.take_along_axis(each, codes_BK, axis=1) for each in scored], axis=2) if scored else empty


def _shared(named: Sequence[Codes], codes_BK: Codes) -> npt.NDArray[np.int64]:
    """How many of the candidates (B, K) are in each of N lists: (B, N)."""
    present_BK = codes_BK != UNKNOWN
    counts = [
        (present_BK & (codes_BK[:, :, np.newaxis] == named_BD[:, np.newaxis, :]).any(axis=2)).sum(axis=1)
        for named_BD in named
    ]
    return np.stack(counts, axis=1)
