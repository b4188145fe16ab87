"""How fast trainings were, as their reports say it."""

from collections.abc import Mapping, Sequence

from train.loop import EpochResult


def speed_figures(curves: Mapping[str, Sequence[EpochResult]]) -> dict[str, float]:
    """Over all epochs of each training: `samples_per_s/<training>`, of all ranks together, and `data_wait/<training>`,
    the share of the time in which they waited for their next batch."""
    figures: dict[str, float] = {}
    for name, epochs in curves.items():
        seconds = sum(epoch.seconds for epoch in epochs)
        figures[f"samples_per_s/{name}"] = sum(epoch.samples_per_s * epoch.seconds for epoch in epochs) / seconds
        figures[f"data_wait/{name}"] = sum(epoch.data_wait * epoch.seconds for epoch in epochs) / seconds
    return figures
