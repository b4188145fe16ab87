"""What `benchmarks.ablation` takes away from the pair, or adds to it, one row each: changes to its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.quality_search import Found
from benchmarks.quality_systems import SYSTEMS, Settings, System
from train.models.sources import SOURCES

RETRIEVAL, PAIR = SYSTEMS["two_tower"], SYSTEMS["two_tower_ranker"]
COMPLETE, WITHOUT_RANKER, WITH_SOURCES = "complete", "without_ranker", "with_all_sources"
ALL_SOURCES = [{"kind": kind} for kind in SOURCES]


@dataclass(frozen=True)
class Row:
    """A pair that differs from another row in what is to be judged."""

    name: str
    retrieval: Settings = field(default_factory=dict)
    """Dotted names of `RetrievalConfig` to values, laid over the settings of the two-tower."""
    ranking: Settings = field(default_factory=dict)
    """Dotted names of `RankingConfig` to values, laid over the settings of the ranker."""
    against: str = COMPLETE
    """The row that it is compared with."""

    @property
    def alone(self) -> str:
        """What its two-tower without the ranker is called."""
        return f"{self.name}/two_tower" if self.retrieval else WITHOUT_RANKER

    @property
    def words(self) -> str:
        """The changes, for people."""
        changes = {**self.retrieval, **self.ranking}
        return "; ".join(f"{name} = {value}" for name, value in changes.items()) or "the stored settings"

    def systems(self, found: Mapping[str, Found]) -> dict[str, tuple[System, Settings]]:
        """Its two-tower and its pair: what each is called, what runs it, and what that is told."""
        retrieval = found[RETRIEVAL.name].settings | self.retrieval
        ranking = found[PAIR.name].settings | self.ranking
        return {
            self.alone: (RETRIEVAL, retrieval),
            self.name: (PAIR, {RETRIEVAL.name: retrieval, PAIR.name: ranking}),
        }


ROWS = (
    Row(COMPLETE),
    Row("without_history", retrieval={"two_tower.inputs": ["attributes", "title"]}),
    Row("without_attributes", retrieval={"two_tower.inputs": ["history", "title"]}),
    Row("without_text", retrieval={"two_tower.inputs": ["history", "attributes"]}),
    Row("in_batch_softmax", retrieval={"two_tower.loss": "in_batch_softmax"}),
    Row(
        "without_logq",
        retrieval={"two_tower.loss": "in_batch_softmax", "two_tower.logq_correction": False},
        against="in_batch_softmax",
    ),
    Row("with_history_attention", ranking={"ranker.history_heads": 2}),
    Row("without_heads", ranking={"ranker.heads.learn": []}),
    Row("pointwise_loss", ranking={"ranker.loss": "pointwise_logistic"}),
    *(Row(f"with_{kind}", ranking={"sources": [{"kind": kind}]}) for kind in SOURCES),
    Row(WITH_SOURCES, ranking={"sources": ALL_SOURCES}),
    Row(
        "blended_candidates",
        ranking={"sources": ALL_SOURCES, "candidates.blend": "reciprocal_rank"},
        against=WITH_SOURCES,
    ),
)
