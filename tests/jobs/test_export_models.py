"""The export job over a real registry: what it writes, prints and measures, and what it refuses."""

from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.reports import Report
from jobs import export_models
from tests.train.conftest import DonePath, path, planted
from train.export import load_export
from train.registry import registered_pairs

__all__ = ["path", "planted"]


@pytest.fixture
def home(path: DonePath, monkeypatch: pytest.MonkeyPatch) -> Path:
    settings = path.workflow.settings
    monkeypatch.setenv("TOWERLINE_HOME", str(settings.home))
    return settings.home


@pytest.mark.cluster
def test_the_champion_with_int8_and_a_student_in_one_table(
    home: Path,
    path: DonePath,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_models.main(["--dataset", "planted", "--int8", "--student"])
    printed = capsys.readouterr().out
    report = Report.model_validate_json((home / "reports" / "export_models.json").read_text())
    figures = report.figures
    runtimes = ("torch", "onnx", "onnx_int8", "student", "student_int8")
    for name in runtimes:
        assert f"\n  {name} " in printed
        for metric in ("ndcg@10", "size_mb", "users_per_s", "p50_ms", "overlap@10"):
            assert figures[f"{metric}/{name}"] > 0
        assert (f"ndcg@10_loss/{name}" in figures) == (name != "torch")
    assert figures["ndcg@10/torch"] == path.evaluation.figures["ndcg@10/two_tower_ranker"]
    assert figures["size_mb/student"] < figures["size_mb/onnx"]
    folder = home / "exports" / f"planted-{path.pair.variant[:8]}"
    student = load_export(folder / "student", "int8").manifest.variant
    assert load_export(folder).manifest.variant == path.pair.variant != student
    assert student in [pair.variant for pair in registered_pairs(path.workflow.settings.tracking_uri, "planted")]
    assert "data:image/png" in (home / "reports" / "export_models.html").read_text()


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "shoes"], "data set 'shoes' does not exist"),
        (["--dataset", "planted", "--variant", "nobody"], "no registered variants of data set 'planted' begin with"),
        (["--dataset", "planted", "--output", "HOME"], "is there and holds no earlier export"),
    ],
)
def test_what_cannot_be_exported_is_refused(home: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        export_models.main([str(home) if argument == "HOME" else argument for argument in arguments])
