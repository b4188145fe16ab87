"""Train a ranker for the challenger two-tower, refit the two-tower on everything, and promote the pair if it passes."""

import argparse
from pathlib import Path

from cluster.job import run_job
from cluster.settings import Settings


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_ranking", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set that train_retrieval has run on")
    parser.add_argument(
        "--config", type=Path, help="TOML, [ranking] and [scaling] of it; default: as for train_retrieval"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Train, compare, refit, register, report."""
    asked, settings = parse(arguments), Settings()

    from cluster.reports import ReportClock
    from cluster.session import connect
    from jobs.console import Console
    from jobs.training import (
        found_config,
        open_workflow,
        origin_of_challenger,
        read_training_config,
        report_of,
        require_trainable,
    )
    from train.crew import same_workers

    clock, console = ReportClock("train_ranking"), Console()
    config = read_training_config(asked.config or found_config(settings, asked.dataset))
    require_trainable(settings, asked.dataset)
    origin = origin_of_challenger(settings, asked.dataset)
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, asked.dataset, config.scaling, console, origin=origin)
        retrieval, retrieval_config, epochs = workflow.load_challenger()
        with same_workers():
            console.say("retrieval on the events before T1, to find the ranker's candidates")
            past = workflow.train_past_retrieval(retrieval_config, epochs, config.ranking.past_share)
            console.say("the ranker on the events after T1")
            ranking = workflow.train_ranking(config.ranking, past.model, retrieval)
            measured = workflow.compare(retrieval, ranking, config.ranking.num_candidates)
            console.say("retrieval on everything, to serve")
            refitted = workflow.refit_retrieval(retrieval_config, epochs)
        pair = workflow.register_pair(refitted, retrieval_config, ranking, config.ranking, measured)
        decision = workflow.promote(pair, config.gate)
    workflow.forget()
    used = config.model_copy(update={"retrieval": retrieval_config})
    console.comparison(measured.evaluation)
    console.registered(pair)
    console.decision(decision)
    curves = {"two-tower": refitted.history, "ranker": ranking.history}
    console.say(f"report: {report_of(clock, workflow, used, measured.evaluation, curves).write(settings.home)}")


if __name__ == "__main__":
    run_job(main)
