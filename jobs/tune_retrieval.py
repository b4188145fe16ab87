"""Search the two-tower's hyperparameters with Ray Tune and Optuna; train_retrieval takes what is found."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tune_retrieval", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of an ingested data set")
    parser.add_argument("--config", type=Path, help="TOML to start from; default: the defaults")
    parser.add_argument("--trials", type=int, help="trials; default: as in the config")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Search, keep the best, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.console import Console
    from jobs.training import (
        TrainingConfig,
        open_workflow,
        read_training_config,
        require_trainable,
        search,
        write_found_config,
    )
    from train.evaluation import PROTOCOL

    clock, console = ReportClock("tune_retrieval"), Console()
    config = read_training_config(asked.config)
    if asked.trials is not None:
        config = TrainingConfig.model_validate(
            config.model_dump() | {"search": config.search.model_dump() | {"num_trials": asked.trials}}
        )
    require_trainable(settings, asked.dataset)
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, asked.dataset, config.scaling, console)
        outcome = search(workflow, config, console)
    best = config.model_copy(update={"retrieval": outcome.config})
    found = write_found_config(settings, asked.dataset, best)
    console.say(f"best trial: {outcome.best + 1}; written to {found}")
    report = clock.finish(
        config=config.model_dump(mode="json"),
        protocol=f"on the validation events: {PROTOCOL}",
        data_version=workflow.dataset.manifest.data_version,
        figures={
            f"ndcg@10/trial_{number}": max(trial.curve)
            for number, trial in enumerate(outcome.trials, start=1)
            if trial.curve
        },
    )
    console.say(f"report: {report.write(settings.home)}")


if __name__ == "__main__":
    run_job(main)
