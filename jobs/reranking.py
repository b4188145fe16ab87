"""What `jobs.evaluate_reranking` does between its command line and its console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, field_validator

from cluster.assets import SMOLLM2, fetch
from cluster.errors import TowerlineError
from cluster.files import write_atomically
from cluster.reports import ReportClock
from cluster.session import connect
from cluster.settings import Settings
from data.dataset import Dataset
from data.features import with_sequence
from data.splits import TEST, VALIDATION
from jobs.console import Console
from jobs.reranking_report import draw_gains, figures_of, words_of
from jobs.training import open_workflow, require_trainable
from serve.language_model import Likelihood, TextLikelihood
from serve.reranking_policy import RerankingPolicy, write_policy
from serve.stages.profile import profile_of
from serve.stages.rerank import NamePreferences, blended_order, prompt_version
from serve.variant import Catalogue
from train.cases import cases
from train.cold_start import drawn, with_known_events
from train.pair import RankedRecommender
from train.protocols import AnyProtocol, EvaluationProtocol
from train.refit import refit, registered_cards
from train.reranking import Bucket, Orders, Threshold, find_threshold, gain_up_to, measure_bucket
from train.scaling import Scaling
from train.vocabulary import Vocabulary

WEIGHTS = (0.1, 0.25, 0.5, 1.0)
"""Of the language model's preferences; at 1 the ranker has no say."""


class RerankingConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["leave-one-out", "global-time", "strong-generalisation"] = "leave-one-out"
    users: Annotated[int, Field(ge=2)] = 100
    """Users who are asked about on each split."""
    known_events: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2, 3, 5)
    """Numbers of events that are known of them."""
    candidates: Annotated[int, Field(ge=2, le=100)] = 10
    """How many of the ranker's first items are re-ranked."""
    seed: NonNegativeInt = 0
    """Of the choice of users."""

    @field_validator("known_events")
    @classmethod
    def _in_order(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(numbers)))


@dataclass(frozen=True)
class RerankingMeasurements:
    """All buckets of both splits."""

    config: RerankingConfig
    protocol: EvaluationProtocol
    weights: Sequence[float]
    buckets: Mapping[str, Sequence[Bucket]]
    """By split: validation chooses, test confirms."""


@dataclass(frozen=True)
class RerankingDecision:
    """Whom to re-rank from now on."""

    threshold: Threshold | None
    """None: nobody."""
    words: str


def measured(settings: Settings, dataset: Dataset, config: RerankingConfig, console: Console) -> RerankingMeasurements:
    """Train the champion's configuration again, and measure it with and without the language model.

    Raises:
        TowerlineError: there is no champion, or too few users to ask about.
    """
    adapter: TypeAdapter[AnyProtocol] = TypeAdapter(AnyProtocol)
    protocol = adapter.validate_python({"kind": config.protocol})
    ranker, history_length, vocabulary = _ranker(settings, dataset, protocol, console)
    likelihood = TextLikelihood(fetch(SMOLLM2) / SMOLLM2.files[0].name, threads=1)
    orders = orders_by(likelihood, Catalogue(vocabulary, dataset.items()), WEIGHTS)
    visible = protocol.visible(protocol.assign(with_sequence(dataset.events())))
    buckets: dict[str, list[Bucket]] = {}
    for split in (VALIDATION, TEST):
        questions = cases(
            protocol, dataset.events(), dataset.users(), vocabulary, split=split, history_length=history_length
        )
        some = drawn(questions, config.users, config.seed)
        buckets[split] = []
        for known in config.known_events:
            cold = with_known_events(some, visible, known, history_length)
            bucket = measure_bucket(
                ranker,
                cold,
                orders,
                known_events=known,
                places=config.candidates,
                weights=len(WEIGHTS),
                track=partial(console.track, what=f"{split} events, {known} known"),
            )
            console.say(
                f"{split} events, {known} known: {len(cold)} users, {bucket.reordered} of them with a right answer to "
                f"move, {bucket.seconds:.0f} s"
            )
            buckets[split].append(bucket)
    return RerankingMeasurements(config, protocol, WEIGHTS, buckets)


def orders_by(likelihood: Likelihood, catalogue: Catalogue, weights: Sequence[float]) -> Orders:
    """The orders that serving would give with each of the weights."""
    preferences = NamePreferences(likelihood)

    def orders(user: Mapping[str, Any], codes_M: Any, scores_M: Any) -> list[Any]:
        preferences_M = preferences.of(profile_of(catalogue, user, codes_M.tolist()))
        return [blended_order(scores_M, preferences_M, weight) for weight in weights]

    return orders


def decide(measurements: RerankingMeasurements) -> RerankingDecision:
    """The threshold that the validation events give, if the test events confirm it."""
    weights, buckets = measurements.weights, measurements.buckets
    threshold = find_threshold(buckets[VALIDATION], len(weights))
    confirmed = None if threshold is None else gain_up_to(buckets[TEST], threshold)
    kept = threshold if confirmed is not None and confirmed.low > 0 else None
    return RerankingDecision(kept, words_of(buckets[VALIDATION], weights, threshold, confirmed))


def write_decision(
    clock: ReportClock, home: Path, dataset: Dataset, measurements: RerankingMeasurements, decision: RerankingDecision
) -> list[Path]:
    """The policy that serving reads, the report and its picture."""
    protocol, version = measurements.protocol, dataset.manifest.data_version
    report = clock.finish(
        config=measurements.config.model_dump(mode="json") | {"weights": list(measurements.weights)},
        protocol=f"{protocol.hash}: {protocol.words}; of each user only the last events are known",
        data_version=version,
        figures=figures_of(measurements, decision),
    )
    policy = policy_of(dataset.name, version, report.started, measurements, decision)
    written = [write_policy(home, policy), report.write(home)]
    picture = written[1].with_suffix(".png")
    write_atomically(picture, draw_gains(measurements))
    return [*written, picture]


def policy_of(
    dataset: str, version: str, started: datetime, measurements: RerankingMeasurements, decision: RerankingDecision
) -> RerankingPolicy:
    """A decision as serving reads it."""
    threshold = decision.threshold
    return RerankingPolicy(
        dataset=dataset,
        below_events=0 if threshold is None else threshold.known_events + 1,
        weight=measurements.weights[0 if threshold is None else threshold.weight],
        candidates=measurements.config.candidates,
        language_model=SMOLLM2.files[0].sha256,
        prompt_version=prompt_version(),
        protocol_hash=measurements.protocol.hash,
        data_version=version,
        users=max(bucket.users.n_unique() for bucket in measurements.buckets[VALIDATION]),
        evaluated=started,
        reason=decision.words,
    )


def _ranker(
    settings: Settings, dataset: Dataset, protocol: AnyProtocol, console: Console
) -> tuple[RankedRecommender, int, Vocabulary]:
    """The champion's configuration, trained on the protocol's train split; its length of history and vocabulary."""
    require_trainable(settings, dataset.name)
    cards = registered_cards(settings.tracking_uri, dataset.name)
    if "ranker" not in cards:
        raise TowerlineError(
            f"data set {dataset.name!r} has no champion, so there is no ranker's order to change; run `python -m "
            f"jobs.train_ranking --dataset {dataset.name}`"
        )
    with connect(settings, log_to_driver=False):
        scaling = Scaling.model_validate(cards["two-tower"].scaling)
        workflow = open_workflow(settings, dataset.name, scaling, console, protocol=protocol)
        contestants = refit(workflow)
    workflow.forget()
    ranker = contestants.recommenders["two_tower_ranker"]
    assert isinstance(ranker, RankedRecommender)
    return ranker, contestants.history_length, contestants.vocabulary
