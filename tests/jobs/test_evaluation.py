"""The command line of `jobs.evaluate_models` as a protocol, what it refuses, and what it leaves behind."""

import json

import polars as pl
import pytest
from pydantic import ValidationError

from cluster.errors import TowerlineError
from cluster.reports import Report
from cluster.settings import Settings
from jobs import evaluate_models
from jobs.evaluate_models import parse
from jobs.evaluation import protocol_of
from tests.train.planted import Planted, plant
from train.protocols import EvaluationProtocol, GlobalTime, LeaveOneOut, StrongGeneralisation
from train.user_values import read_user_values


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize(
    ("arguments", "protocol"),
    [
        ([], LeaveOneOut()),
        (["--cut-off", "2"], LeaveOneOut(cut_off=2)),
        (["--protocol", "global-time", "--test-share", "0.2"], GlobalTime(test_share=0.2)),
        (
            ["--protocol", "strong-generalisation", "--min-value", "4", "--seed", "3", "--held-out-share", "0.2"],
            StrongGeneralisation(min_value=4, seed=3, held_out_share=0.2),
        ),
    ],
)
def test_the_command_line_names_a_protocol(arguments: list[str], protocol: EvaluationProtocol) -> None:
    assert protocol_of(parse(["--dataset", "d", *arguments])).hash == protocol.hash


def test_options_of_another_protocol_are_refused() -> None:
    asked = parse(["--dataset", "d", "--protocol", "global-time", "--cut-off", "1"])
    with pytest.raises(TowerlineError, match=r"--cut-off is 1, which is no option of global-time \(it has: --test-sha"):
        protocol_of(asked)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 2"):
        protocol_of(parse(["--dataset", "d", "--cut-off", "3"]))


@pytest.mark.cluster
def test_the_job_leaves_a_report_a_page_and_the_values(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without anything registered the sources are evaluated, and it says why nobody else is."""
    monkeypatch.setenv("TOWERLINE_HOME", str(planted.home))
    evaluate_models.main(["--dataset", "planted", "--protocol", "global-time"])
    printed = capsys.readouterr().out
    folder = Settings(home=planted.home).home / "reports"
    report = Report.model_validate_json((folder / "evaluate_models.json").read_text())
    assert report.protocol == f"{GlobalTime().hash}: {GlobalTime().words}"
    assert report.config["protocol"] == json.loads(GlobalTime().model_dump_json())
    values = read_user_values(folder / "evaluate_models.parquet")
    mean = values.filter(pl.col("model") == "ease")["ndcg@10"].mean()
    assert report.figures["ndcg@10/ease"] == pytest.approx(mean)
    assert "data:image/png" in (folder / "evaluate_models.html").read_text()
    for line in ("no challenger: ", "no champion: ", f"protocol {GlobalTime().hash}", "age=(rare)", "cold"):
        assert line in printed


def test_a_data_set_that_there_is_not_is_refused(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(planted.home))
    with pytest.raises(TowerlineError, match="data set 'shoes' does not exist"):
        evaluate_models.main(["--dataset", "shoes"])
