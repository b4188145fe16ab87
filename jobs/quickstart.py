"""The whole path on MovieLens-100K: from raw events to answers over HTTP, with embedded defaults."""

import argparse
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.settings import Settings

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.training import TrainingConfig
    from serve.skew_check import Checked
    from train.evaluation import Evaluation
    from train.loop import EpochResult
    from train.promotion import Decision
    from train.registry import RegisteredPair
    from train.workflow import Workflow

DATASET = "movielens-100k"
KNOWN_USER = "1"
ITEM = "50"
"""Star Wars."""
DECISIONS_CHECKED = 1000
"""At most so many logged answers are checked for skew."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.quickstart", description=__doc__)
    parser.add_argument(
        "--config", type=Path, help="TOML, see jobs/configs/training.toml; default: jobs/configs/demo.toml"
    )
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Trained:
    """What the training steps gave, for the report."""

    config: "TrainingConfig"
    """With the two-tower's configuration that the search found."""
    evaluation: "Evaluation"
    curves: "dict[str, list[EpochResult]]"
    seconds: float
    """Wall time of all trainings, the search aside."""


def main(arguments: list[str]) -> None:
    """Eleven steps; the last one leaves a report. The first, set-up, is `make install`."""
    asked, settings = parse(arguments), Settings()

    from cluster.files import write_atomically
    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.check_skew import check
    from jobs.console import Console
    from jobs.demo import CONFIG, FullRun, demo_figures, quality_checks, require_passed, time_check
    from jobs.report_page import report_page
    from jobs.tour import tour
    from jobs.training import open_workflow, read_training_config, report_of
    from serve.config import AppConfig
    from serve.profile import require_free_port
    from serve.session import running
    from train import tracking

    clock, console = ReportClock("quickstart"), Console(first_step=2)
    config, full = read_training_config(asked.config or CONFIG), FullRun.read()
    require_free_port(settings)
    tracking.connect(settings.tracking_uri)
    with connect(settings, log_to_driver=False):
        with console.step("Data: MovieLens-100K, validated with Ray Data"):
            ingest(settings)
        with console.step("Features with Ray Data, exact in time"):
            workflow = open_workflow(settings, DATASET, config.scaling, console)
            console.say(f"{workflow.examples.height:,} examples in {workflow.examples_folder}")
        full.require_asked_alike(workflow.protocol.hash, workflow.dataset.manifest.data_version)
        trained = train(workflow, config, console)
        with ExitStack() as endpoint:
            with console.step("Serving: gateway, features, retrieval, filter, ranking, explanation on Ray Serve"):
                url = endpoint.enter_context(running(settings, AppConfig(dataset=DATASET)))
                console.say(f"{url}/docs")
            with console.step("Requests over HTTP"):
                answers = tour(url, KNOWN_USER, f"visitor {uuid.uuid4().hex[:6]}", ITEM, console.say)
        with console.step("Skew: the features that were served, computed again from the events"):
            require_no_skew(check(settings, DATASET, DECISIONS_CHECKED, seed=0), console)
    figures = demo_figures(trained.evaluation, full, trained.seconds)
    report = report_of(clock, workflow, trained.config, trained.evaluation, trained.curves, others=figures)
    page = report.write(settings.home).with_suffix(".html")
    write_atomically(page, report_page(report, trained.evaluation, trained.curves, answers))
    console.say(f"\nreport: {page} (and .json), {report.seconds:.0f} s in all; `make serve` keeps the endpoint up")
    checks = quality_checks(trained.evaluation, full)
    for line in map(str, (*checks, time_check(trained.seconds))):
        console.say(line)
    require_passed(checks)


def ingest(settings: Settings) -> None:
    """Read, validate and write the films, their users and ratings."""
    from cluster.assets import MOVIELENS_100K, fetch
    from data.ingest.ingestion import ingest_movielens
    from data.parallel import on_ray
    from data.summary import print_ingested

    print_ingested(ingest_movielens(settings.home, fetch(MOVIELENS_100K), datetime.now(UTC), run=on_ray))


def train(workflow: "Workflow", config: "TrainingConfig", console: "Console") -> Trained:
    """Search, train both models, compare them with the baselines, and register the pair as champion."""
    from jobs.searching import search_retrieval
    from train.crew import same_workers

    with console.step("Search with Ray Tune, Optuna's TPE and ASHA"):
        retrieval_config = search_retrieval(workflow, config, console).config
    began = time.monotonic()
    with same_workers():
        with console.step("Retrieval training: the two-tower on Ray Train with Horovod"):
            retrieval = workflow.train_retrieval(retrieval_config)
        epochs = retrieval.best_epoch + 1
        with console.step("Ranking training, forward in time: retrieval before T1, the ranker after T1, then a refit"):
            console.say("retrieval on the events before T1, to find the ranker's candidates")
            past = workflow.train_past_retrieval(retrieval_config, epochs, config.ranking.past_share)
            console.say("the ranker on the events after T1")
            ranking = workflow.train_ranking(config.ranking, past.model, retrieval.model)
            console.say("retrieval on everything, to serve")
            refitted = workflow.refit_retrieval(retrieval_config, epochs)
    seconds = time.monotonic() - began
    with console.step("Evaluation"):
        measured = workflow.compare(retrieval.model, ranking, config.ranking.num_candidates)
        console.comparison(measured.evaluation)
    with console.step("Registry: both models in MLflow, champion if they pass the gate"):
        pair = workflow.register_pair(refitted, retrieval_config, ranking, config.ranking, measured)
        console.registered(pair)
        console.decision(promoted(workflow, pair, config, measured.evaluation))
    workflow.forget()
    trained_config = config.model_copy(update={"retrieval": retrieval_config})
    curves = {"two-tower": retrieval.history, "ranker": ranking.history}
    return Trained(trained_config, measured.evaluation, curves, seconds)


def promoted(
    workflow: "Workflow", pair: "RegisteredPair", config: "TrainingConfig", evaluation: "Evaluation"
) -> "Decision":
    """Promote the pair if it is better than the champion, which an equal one, of the same demo run again, is not.

    A champion of an older version of this code or data, measured otherwise, is replaced. Raises TowerlineError, with
    the numbers, if there is no champion then.
    """
    from train.gate import absolute_checks

    decision = workflow.promote(pair, config.gate)
    good = all(check.passed for check in absolute_checks(evaluation, config.gate))
    if decision.entry is None and not decision.report.comparable and good:
        reason = "the demo's champion was measured by another protocol or on other data"
        decision = workflow.promote(pair, config.gate, force=reason)
    if decision.entry is None and decision.report.against is None:
        raise TowerlineError("; ".join(decision.report.failed))
    return decision


def require_no_skew(checked: "Checked", console: "Console") -> None:
    """Say what was compared. Raise TowerlineError if a feature was not served as the batch computes it."""
    console.say(str(checked))
    if checked.skew.differences.height:
        first = ", ".join(map(str, checked.skew.differences.row(0)))
        raise TowerlineError(f"{checked}; the first: {first}; see `python -m jobs.check_skew --dataset {DATASET}`")


if __name__ == "__main__":
    run_job(main)
