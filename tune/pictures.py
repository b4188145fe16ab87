"""What a search shows: how its trials went, and which of the fields mattered."""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from tune.dimensions import Dimension
from tune.outcome import SearchOutcome

LEAST_TRIALS = 4
"""With fewer measured trials nothing can be said of importance."""


def importance(outcome: SearchOutcome[Any], space: Mapping[str, Dimension]) -> dict[str, float]:
    """Share of each field in what sets the better half of the trials apart, most first; empty with too few trials.

    PED-ANOVA (Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces",
    IJCAI 2023), over the best value of each trial.
    """
    measured = [trial for trial in outcome.trials if trial.curve]
    if len(measured) < LEAST_TRIALS or len({trial.best(outcome.mode) for trial in measured}) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if outcome.mode == "max" else "minimize")
    distributions = {name: dimension.distribution() for name, dimension in space.items()}
    study.add_trials(
        optuna.trial.create_trial(params=trial.sample, distributions=distributions, value=trial.best(outcome.mode))
        for trial in measured
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def draw_search(outcome: SearchOutcome[Any], shares: Mapping[str, float]) -> bytes:
    """A PNG: the trials' curves on the left, the best one thick; the `importance` of the fields on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    for trial in outcome.trials:
        best = trial.number == outcome.best.number
        curves.plot(
            range(1, len(trial.curve) + 1),
            trial.curve,
            marker="o",
            markersize=3,
            linewidth=3 if best else 1,
            color="tab:orange" if best else "tab:blue",
            alpha=1 if best else 0.5,
            zorder=3 if best else 2,
            label=f"best: trial {trial.number}" if best else None,
        )
    failed = sum(not trial.curve for trial in outcome.trials)
    curves.set(
        title=f"{len(outcome.trials)} trials" + (f", {failed} without a value" if failed else ""),
        xlabel="epoch",
        ylabel=f"{outcome.metric}, validation events",
    )
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.legend()
    curves.grid(alpha=0.3)
    names = list(shares)[::-1]
    bars.barh(names, [shares[name] for name in names])
    bars.set(title="importance (PED-ANOVA)", xlim=(0, 1))
    if not shares:
        bars.text(0.5, 0.5, "too few trials to say", ha="center", va="center", transform=bars.transAxes)
        bars.set(yticks=[])
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
