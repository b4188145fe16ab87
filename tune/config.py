"""How a search is done."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from train.scaling import Scaling
from tune.dimensions import Space


class SearchConfig(BaseModel):
    """How much to search, where, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's TPE, which learns from the trials before; draws; or every point of the space."""
    num_trials: PositiveInt = 5
    """Trials at most; the first one tries the configuration as it is, or the point of the space nearest to it."""
    time_budget_s: PositiveFloat | None = None
    """Seconds after which the search ends with what it has; none: when all trials are done."""
    max_epochs: PositiveInt = 3
    """Epochs of a trial that ASHA lets live."""
    concurrent_trials: PositiveInt = 2
    """Trials at a time; fewer if the cluster has no room for them."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the sampler."""
    space: Space | None = None
    """Dotted name of a field to `{choices = […]}` or `{low =, high =}` with `log = true` or `step =`; none: the
    model's own."""
    scaling: Scaling = Scaling(backend="none")
    """What a trial trains on: backend `none` is one process, any other a distributed training of its own."""
