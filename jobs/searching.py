"""What the search jobs share: where a search begins, the search itself, and what it leaves behind."""

from pathlib import Path
from typing import Any, Literal

from cluster.files import write_atomically
from cluster.reports import ReportClock
from cluster.session import connect
from cluster.settings import Settings
from jobs.console import Console
from jobs.training import (
    TrainingConfig,
    found_config,
    open_workflow,
    origin_of_challenger,
    read_training_config,
    require_trainable,
    write_found_config,
)
from train.ranking import RankingConfig
from train.retrieval import RetrievalConfig
from train.trainer import delete_run
from train.workflow import Workflow, digest_of
from tune.config import SearchConfig
from tune.models import space_of
from tune.outcome import SearchOutcome
from tune.pictures import draw_search, importance
from tune.search import finished_search, search_model
from tune.space import around

Searched = Literal["retrieval", "ranking"]
"""A model that can be searched, as the sections of `TrainingConfig` name it."""


def run_search(model: Searched, settings: Settings, dataset: str, asked: Path | None, trials: int | None) -> None:
    """The whole of a search job: what can be refused is refused before Ray starts, then search, keep and report.

    Raises:
        TowerlineError: the configuration, the data set or MLflow is not as it must be, or the ranker, which is searched
            for the challenger two-tower, has none.
    """
    clock, console = ReportClock(f"tune_{model}"), Console()
    config = search_config(settings, dataset, asked, model, trials)
    require_trainable(settings, dataset)
    origin = origin_of_challenger(settings, dataset) if model == "ranking" else None
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, dataset, config.scaling, console, origin=origin)
        search = search_ranking if model == "ranking" else search_retrieval
        outcome: SearchOutcome[Any] = search(workflow, config, console)
    finish_search(model, outcome, config, workflow, clock=clock, console=console)


def search_config(
    settings: Settings, dataset: str, asked: Path | None, model: Searched, trials: int | None
) -> TrainingConfig:
    """Where the search for a model begins: the file that was asked for, else what is known of the other model.

    Without a file the searched model begins at its defaults, so that the same command is the same search.

    Raises:
        TowerlineError: the file cannot be read, or the space does not fit the model's configuration.
    """
    config = read_training_config(asked or found_config(settings, dataset))
    if asked is None:
        default = TrainingConfig()
        config = config.model_copy(update={model: getattr(default, model), "search": default.search})
    if trials is not None:
        searches = config.search.model_dump()
        searches[model]["num_trials"] = trials
        config = TrainingConfig.model_validate(config.model_dump() | {"search": searches})
    space_of(getattr(config.search, model), getattr(config, model))
    return config


def search_retrieval(workflow: Workflow, config: TrainingConfig, console: Console) -> SearchOutcome[RetrievalConfig]:
    """Search from `config.retrieval`; goes on where an equal search was interrupted, and reads one that was done."""
    search = config.search.retrieval
    name = workflow.name_of("retrieval-search", _decisive(workflow, config.retrieval, search))
    done = finished_search(config.retrieval, name=name, storage=workflow.storage)
    if done is not None:
        console.say("this search was done before; what it found is read")
        return done
    return search_model(
        workflow.retrieval_task(config.retrieval),
        search,
        name=name,
        storage=workflow.storage,
        tracking=workflow.tracking("retrieval search"),
        progress=console.trial,
    )


def search_ranking(workflow: Workflow, config: TrainingConfig, console: Console) -> SearchOutcome[RankingConfig]:
    """Search from `config.ranking`, for the challenger two-tower; else as `search_retrieval`.

    Raises:
        TowerlineError: there is no challenger.
    """
    search = config.search.ranking
    retrieval, retrieval_config, epochs = workflow.load_challenger()
    decisive = _decisive(workflow, config.ranking, search) | {"retrieval": digest_of(retrieval), "epochs": epochs}
    name = workflow.name_of("ranking-search", decisive)
    done = finished_search(config.ranking, name=name, storage=workflow.storage)
    if done is not None:
        console.say("this search was done before; what it found is read")
        return done
    console.say("retrieval on the events before T1, to find the ranker's candidates")
    past = workflow.train_past_retrieval(retrieval_config, epochs, config.ranking.past_share)
    lists = f"{name}-lists"
    outcome: SearchOutcome[RankingConfig] = search_model(
        workflow.ranking_task(config.ranking, past.model, retrieval, workflow.storage / lists),
        search,
        name=name,
        storage=workflow.storage,
        tracking=workflow.tracking("ranking search"),
        progress=console.trial,
    )
    delete_run(lists, workflow.storage)
    return outcome


def finish_search(
    model: Searched,
    outcome: SearchOutcome[Any],
    config: TrainingConfig,
    workflow: Workflow,
    *,
    clock: ReportClock,
    console: Console,
) -> None:
    """Keep what was found for the trainings that follow, and leave a report with a picture."""
    settings, name = workflow.settings, workflow.dataset.name
    base = getattr(config, model)
    shares = importance(outcome, around(space_of(getattr(config.search, model), base), base))
    found = write_found_config(settings, name, config.model_copy(update={model: outcome.config}))
    console.searched(outcome, shares)
    console.say(f"written to {found}")
    states = [trial.state for trial in outcome.trials]
    report = clock.finish(
        config=config.model_dump(mode="json"),
        protocol=f"on the validation events: {workflow.protocol.words}",
        data_version=workflow.dataset.manifest.data_version,
        figures={f"{outcome.metric}/best": outcome.best.best(outcome.mode), "seconds/search": outcome.seconds}
        | {f"trials/{state}": float(states.count(state)) for state in ("finished", "stopped", "failed")}
        | {
            f"{outcome.metric}/trial_{trial.number}": trial.best(outcome.mode)
            for trial in outcome.trials
            if trial.curve
        }
        | {f"importance/{field}": share for field, share in shares.items()},
    ).write(settings.home)
    picture = report.with_suffix(".png")
    write_atomically(picture, draw_search(outcome, shares))
    console.say(f"report: {report}, picture: {picture}")


def _decisive(workflow: Workflow, config: RetrievalConfig | RankingConfig, search: SearchConfig) -> dict[str, Any]:
    """What decides how a search turns out, the data aside."""
    return {
        "config": config.model_dump(mode="json"),
        "search": search.model_dump(mode="json"),
        "rows": str(workflow.train_split),
    }
