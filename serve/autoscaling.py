"""How many replicas a deployment should have: by load, by schedule, by forecast, and the most of the three.

A policy is a plain class over an `Observation`; it knows neither Ray nor a clock. `Autoscaler` is what Ray Serve's
controller calls; Ray applies the bounds, factors and delays (cool-downs) of the deployment to its answer.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from cluster.errors import TowerlineError
from serve.request_history import RequestHistory

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

logger = logging.getLogger(__name__)

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SEASONS = {"day": 86_400.0, "week": 7 * 86_400.0}
REQUESTS_PER_S = "requests_per_s"
QUEUE_MS = "queue_ms"
BATCH_FILL = "batch_fill"
"""Names of what replicas report by `record_autoscaling_stats`."""


@dataclass(frozen=True)
class Observation:
    """What is known of a deployment at a moment."""

    time: float
    """Seconds since the epoch, UTC."""
    replicas: int
    """That run now."""
    ongoing_requests: float
    """Of all replicas, those that wait for one included."""
    requests_per_s: float | None = None
    """That arrive at all replicas; None: they do not say."""
    queue_ms: float | None = None
    """How long requests wait in the replica where they wait longest."""
    batch_fill: float | None = None
    """Share of a full micro-batch, in the replica where they are fullest."""


class Policy(Protocol):
    """Says how many replicas it takes, as a real number; 0 if it has nothing to say."""

    def desired(self, seen: Observation) -> float:
        """Called at every look of the controller, in the order of time."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadConfig(_Config):
    """By what goes on now."""

    target_ongoing_requests: PositiveFloat = 16.0
    """Requests under way per replica to aim at."""
    target_queue_ms: PositiveFloat | None = None
    """Where requests wait longer than so many milliseconds, replicas are added in proportion."""
    target_batch_fill: Annotated[float, Field(gt=0, le=1)] | None = None
    """Where micro-batches are fuller than this share, replicas are added in proportion."""


class Window(_Config):
    """A time of the week, as the clocks on the wall show it, with a least number of replicas."""

    days: tuple[Day, ...] = DAYS
    """On which it begins."""
    start: time
    """When it begins, HH:MM."""
    end: time
    """When it ends, HH:MM; on the next day if that is not later than `start`."""
    replicas: PositiveInt
    """At least so many in it."""


class ScheduleConfig(_Config):
    """By the calendar."""

    windows: tuple[Window, ...] = Field(min_length=1)
    """The most of those that overlap counts."""
    timezone: str = "UTC"
    """Of the windows: a name of the IANA time zone database."""
    lead_s: NonNegativeFloat = 60.0
    """Replicas are asked for so many seconds before a window begins: what one takes to start."""

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"time zone {name!r} is not known; take a name such as Europe/Paris") from error
        return name


class ForecastConfig(_Config):
    """By what came at the same time of earlier days or weeks."""

    requests_per_s: PositiveFloat
    """That one replica answers in time."""
    season: Literal["day", "week"] | PositiveFloat = "day"
    """After which the load repeats itself; a number: seconds."""
    slot_s: PositiveFloat = 300.0
    """Seconds of the season that are taken together."""
    lead_s: NonNegativeFloat = 120.0
    """How far to look ahead: what a replica takes to start, and some more."""
    margin: NonNegativeFloat = 0.1
    """Share of the forecast to be ready for on top of it."""
    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the newest season."""
    history: Path | None = None
    """File that keeps what was learnt when the controller starts anew; absolute."""

    @property
    def season_s(self) -> float:
        """Seconds of a season."""
        return SEASONS[self.season] if isinstance(self.season, str) else self.season


class AutoscalingPolicyConfig(_Config):
    """The policies of a deployment; the most of what they ask for counts."""

    load: LoadConfig = LoadConfig()
    schedule: ScheduleConfig | None = None
    forecast: ForecastConfig | None = None


class Load:
    """Ongoing requests, queue time and batch fill against their targets."""

    def __init__(self, config: LoadConfig) -> None:
        self._config = config

    def desired(self, seen: Observation) -> float:
        """The most that any of them asks for; queue and fill double the replicas at most."""
        asked = [seen.ongoing_requests / self._config.target_ongoing_requests]
        for value, target in (
            (seen.queue_ms, self._config.target_queue_ms),
            (seen.batch_fill, self._config.target_batch_fill),
        ):
            if value is not None and target is not None and value > target:
                asked.append(seen.replicas * min(2.0, value / target))
        return max(asked)


class Schedule:
    """Windows of the week with a minimum."""

    def __init__(self, config: ScheduleConfig) -> None:
        self._config = config
        self._zone = ZoneInfo(config.timezone)

    def desired(self, seen: Observation) -> float:
        """The most of the windows that are open, or will be within the lead; 0 outside of all."""
        return max((window.replicas for window in self._config.windows if self._is_open(window, seen.time)), default=0)

    def _is_open(self, window: Window, moment: float) -> bool:
        """Windows are hours of wall clocks: one over a change of the clocks is an hour longer or shorter."""
        now = datetime.fromtimestamp(moment, UTC)
        lead = timedelta(seconds=self._config.lead_s)
        today = (now + lead).astimezone(self._zone).date()
        for day in (today - timedelta(days=1), today):
            if DAYS[day.weekday()] not in window.days:
                continue
            last_day = day if window.end > window.start else day + timedelta(days=1)
            start = datetime.combine(day, window.start, self._zone).astimezone(UTC)
            end = datetime.combine(last_day, window.end, self._zone).astimezone(UTC)
            if start - lead <= now < end:
                return True
        return False


class Forecast:
    """What came at this time of earlier seasons, at the level of the last hour."""

    def __init__(self, config: ForecastConfig) -> None:
        """Raises `TowerlineError` if the kept history is of other seasons."""
        self._config = config
        self._history = RequestHistory(config.season_s, config.slot_s, config.smoothing)
        if config.history is not None and config.history.exists():
            self._history.load(config.history)

    def desired(self, seen: Observation) -> float:
        """Replicas for the most that is expected until `lead_s` from now; 0 before a season was seen."""
        if seen.requests_per_s is not None and self._history.observe(seen.time, seen.requests_per_s):
            self._keep()
        expected = self._history.expected(seen.time, seen.time + self._config.lead_s)
        return 0.0 if expected is None else expected * (1 + self._config.margin) / self._config.requests_per_s

    def _keep(self) -> None:
        if self._config.history is None:
            return
        try:
            self._history.save(self._config.history)
        except OSError as error:
            # The controller scales every deployment: it must go on. What is lost is known again after a season.
            logger.error("%s: the history of requests is not kept: %s", self._config.history, error)  # noqa: TRY400


class Most:
    """The most of what several policies ask for."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies

    def desired(self, seen: Observation) -> float:
        """Every policy is asked, so that each learns."""
        return max(policy.desired(seen) for policy in self._policies)


def policy_of(config: AutoscalingPolicyConfig) -> Policy:
    """The policies that a configuration names, as one."""
    policies: list[Policy] = [Load(config.load)]
    if config.schedule is not None:
        policies.append(Schedule(config.schedule))
    if config.forecast is not None:
        policies.append(Forecast(config.forecast))
    return Most(policies)


class Autoscaler:
    """A policy as Ray Serve's controller wants it: made once per deployment, asked some times a second."""

    def __init__(self, **config: Any) -> None:
        """`config`: an `AutoscalingPolicyConfig` as JSON. Raises `pydantic.ValidationError`."""
        self._policy = policy_of(AutoscalingPolicyConfig.model_validate(config))

    def __call__(self, context: "AutoscalingContext") -> tuple[float, dict[str, Any]]:
        """Desired replicas, and no state: what is learnt stays here."""
        return self._policy.desired(observation(context)), {}


def observation(context: "AutoscalingContext") -> Observation:
    """What Ray's context says, and what the replicas reported over the look-back period.

    Raises:
        TowerlineError: the context has no time.
    """
    if context.current_time is None:
        raise TowerlineError(f"Ray Serve gives no time for {context.deployment_name}; Ray 2.60 does")
    reported = context.aggregated_metrics or {}
    rates, queues, fills = (
        [value for value in reported.get(name, {}).values() if math.isfinite(value)]
        for name in (REQUESTS_PER_S, QUEUE_MS, BATCH_FILL)
    )
    return Observation(
        time=context.current_time,
        replicas=context.current_num_replicas,
        ongoing_requests=context.total_num_requests,
        requests_per_s=sum(rates) if rates else None,
        queue_ms=max(queues, default=None),
        batch_fill=max(fills, default=None),
    )
