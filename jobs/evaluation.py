"""What `jobs.evaluate_models` does between its command line and its console."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cluster.errors import TowerlineError
from cluster.files import write_atomically
from cluster.reports import ReportClock
from cluster.session import connect
from cluster.settings import Settings
from data.dataset import Dataset
from jobs.console import Console
from jobs.evaluation_page import evaluation_page
from jobs.training import open_workflow, require_trainable
from train.cases import cases
from train.contestants import Contestants, Registration, add_sources
from train.evaluation import Measurements, measure
from train.protocols import AnyProtocol, EvaluationProtocol
from train.refit import refit, registered_cards
from train.scaling import Scaling
from train.user_values import write_user_values

OPTIONS = ("cut_off", "test_share", "held_out_share", "min_value", "seed")


@dataclass(frozen=True)
class Contest:
    """What was measured, and who was not."""

    measurements: Measurements
    left_out: list[str]


def protocol_of(asked: argparse.Namespace) -> AnyProtocol:
    """The protocol that the command line describes.

    Raises:
        TowerlineError: an option is not one of this protocol's.
        ValidationError: it is out of range.
    """
    given = {name: getattr(asked, name) for name in OPTIONS if getattr(asked, name) is not None}
    adapter: TypeAdapter[AnyProtocol] = TypeAdapter(AnyProtocol)
    known = type(adapter.validate_python({"kind": asked.protocol})).model_fields
    if unknown := [name for name in given if name not in known]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in OPTIONS if name in known)
        raise TowerlineError(
            f"--{unknown[0].replace('_', '-')} is {given[unknown[0]]}, which is no option of {asked.protocol} (it has: "
            f"{options}); leave it out or choose another --protocol"
        )
    return adapter.validate_python({"kind": asked.protocol, **given})


def measured_as_registered(settings: Settings, dataset: Dataset, protocol: EvaluationProtocol) -> Contest:
    """The sources and whatever is registered and has not seen the answers. Needs no Ray session."""
    return _measured(dataset, protocol, Registration(dataset, protocol, settings.tracking_uri).contestants())


def measured_again(settings: Settings, dataset: Dataset, protocol: AnyProtocol, console: Console) -> Contest:
    """The sources and the registered configuration, trained again on the protocol's train split."""
    require_trainable(settings, dataset.name)
    cards = registered_cards(settings.tracking_uri, dataset.name)
    scaling = Scaling.model_validate(cards["two-tower"].scaling)
    with connect(settings, log_to_driver=False):
        workflow = open_workflow(settings, dataset.name, scaling, console, protocol=protocol)
        contest = _measured(dataset, protocol, refit(workflow))
    workflow.forget()
    return contest


def write_evaluation(
    clock: ReportClock, home: Path, dataset: Dataset, config: dict[str, Any], contest: Contest
) -> list[Path]:
    """The report, the values by user, and the page with the pictures."""
    evaluation = contest.measurements.evaluation
    report = clock.finish(
        config=config | {"protocol": contest.measurements.protocol.model_dump(mode="json")},
        protocol=f"{evaluation.protocol_hash}: {evaluation.protocol}",
        data_version=dataset.manifest.data_version,
        figures=evaluation.figures,
    )
    written = [report.write(home), write_user_values(contest.measurements.values, home, report)]
    page, text = written[0].with_suffix(".html"), evaluation_page(report, contest.measurements, contest.left_out)
    write_atomically(page, text)
    return [*written, page]


def _measured(dataset: Dataset, protocol: EvaluationProtocol, contestants: Contestants) -> Contest:
    events = dataset.events()
    add_sources(contestants, protocol, events)
    asked = cases(protocol, events, dataset.users(), contestants.vocabulary, history_length=contestants.history_length)
    return Contest(measure(contestants.recommenders, asked, dataset.items()), contestants.left_out)
