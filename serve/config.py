"""The arguments of the serving application: what is served, how the stages are composed, how many replicas."""

import tomllib
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cluster.errors import TowerlineError
from serve.autoscaling import AutoscalingPolicyConfig, ForecastConfig, LoadConfig, ScheduleConfig
from serve.eligibility import RulesConfig
from serve.generation import CompletionsConfig
from serve.graph import GraphConfig
from serve.limits import REQUEST_TIMEOUT_S
from serve.profile import SERVE_TIMEOUT_S
from serve.stages.explain import ExplainConfig
from train.index_choice import IndexConfig


class Replicas(BaseModel):
    """How a deployment scales: by load, and, where they are given, by a schedule and a forecast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: NonNegativeInt = 1
    """0: none while nobody asks, for the language model alone. What asks first does without it and has one started."""
    max: PositiveInt = 1
    target_ongoing_requests: PositiveFloat = 16.0
    """Requests under way per replica that autoscaling aims at."""

    max_ongoing_requests: PositiveInt = 64
    """Requests that a replica takes at once; more wait in the caller. A gateway takes as many as its graph may have
    under way, and then some: it says itself when it has too many."""

    upscale_delay_s: NonNegativeFloat = 10.0
    downscale_delay_s: NonNegativeFloat = 120.0
    target_queue_ms: PositiveFloat | None = None
    """Where requests wait longer for their micro-batch, replicas are added. Of the gateway alone."""

    target_batch_fill: float | None = Field(default=None, gt=0, le=1)
    """Where micro-batches are fuller, replicas are added. Of the gateway alone."""

    schedule: ScheduleConfig | None = None
    forecast: ForecastConfig | None = None
    """Of the gateway alone, which says how many requests come."""

    num_cpus: NonNegativeFloat = 0.5
    """Logical CPUs that Ray sets aside for a replica."""

    @model_validator(mode="after")
    def _min_is_not_over_max(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, which is over max {self.max}; raise max")
        return self

    def policy(self) -> AutoscalingPolicyConfig:
        """What asks for replicas, the bounds and delays aside."""
        load = LoadConfig(
            target_ongoing_requests=self.target_ongoing_requests,
            target_queue_ms=self.target_queue_ms,
            target_batch_fill=self.target_batch_fill,
        )
        return AutoscalingPolicyConfig(load=load, schedule=self.schedule, forecast=self.forecast)


class AppConfig(BaseModel):
    """What `serve.app.build` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(min_length=1)
    """Data set whose champion is served."""

    champion_poll_s: PositiveFloat = 3.0
    """Seconds between two looks at the registry for another champion, and at the data set for new items."""

    request_timeout_s: float = Field(default=REQUEST_TIMEOUT_S, gt=0, lt=SERVE_TIMEOUT_S)
    """Seconds after which a request is given up, whatever it waits for; a replica that stops waits so long for those
    under way."""

    graph: GraphConfig = GraphConfig()
    index: IndexConfig = IndexConfig()
    rules: RulesConfig = RulesConfig()
    explain: ExplainConfig = ExplainConfig()
    completions: CompletionsConfig = CompletionsConfig()
    """Of the explanations' deployment: where `graph.explain` is in process there are none."""

    gateway_replicas: Replicas = Replicas(max=2)
    stage_replicas: Replicas = Replicas(max=2)
    """Of each remote stage but the language model's (`explain` and `rerank`)."""

    explain_replicas: Replicas = Replicas(target_ongoing_requests=4, max_ongoing_requests=8)
    """Of the language model. Its threads spin, so two of them on one machine's cores are slower than one.
    Completions count beside `max_ongoing_requests`, so that they take no place of an explanation."""

    @property
    def most_completions(self) -> int:
        """Completions that a gateway asks for at once: what all replicas take."""
        return self.completions.most * self.explain_replicas.max

    @model_validator(mode="after")
    def _only_the_language_model_may_be_cold(self) -> "AppConfig":
        for name in ("gateway_replicas", "stage_replicas"):
            if getattr(self, name).min == 0:
                raise ValueError(f"{name}.min is 0, but every answer needs one; only explain_replicas.min may be 0")
        return self

    @model_validator(mode="after")
    def _vllm_has_replicas(self) -> "AppConfig":
        if self.explain.on_gpus is not None and self.graph.explain == "in_process":
            raise ValueError(
                "explain.engine is 'vllm', which needs replicas with GPUs, and graph.explain is 'in_process', expected "
                "'remote'"
            )
        return self

    @model_validator(mode="after")
    def _a_completion_fits_into_the_context(self) -> "AppConfig":
        if self.completions.max_tokens >= self.explain.context:
            raise ValueError(
                f"completions.max_tokens is {self.completions.max_tokens}, which leaves no room for a prompt in "
                f"explain.context = {self.explain.context}; lower the one or raise the other"
            )
        return self


def read_config(dataset: str, path: Path | None = None) -> AppConfig:
    """The arguments for a data set, from a TOML file that may leave out any of them.

    Raises:
        TowerlineError: the file is not there or is not TOML.
        pydantic.ValidationError: it holds an unknown key or a value out of range.
    """
    if path is None:
        return AppConfig(dataset=dataset)
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TowerlineError(f"{path}: {error}; see jobs/configs/serve_models.toml for an example") from error
    return AppConfig.model_validate({**values, "dataset": dataset})
