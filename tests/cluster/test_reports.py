import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.provenance import git_commit
from cluster.reports import Report, ReportClock

KEYS = {
    "name",
    "started",
    "seconds",
    "config",
    "protocol",
    "data_version",
    "versions",
    "git_commit",
    "machine",
    "figures",
}


def finish(clock: ReportClock, **changes: Any) -> Report:
    content: dict[str, Any] = {
        "config": {"retrieval": {"seed": 3, "path": "群/1"}},
        "protocol": "leave-one-out",
        "data_version": "d" * 64,
        "figures": {"ndcg@10/two_tower": 0.25, "seconds/training": 3},
    }
    return clock.finish(**(content | changes))


def test_the_file_has_the_fixed_shape(tmp_path: Path) -> None:
    began = datetime.now(UTC)
    clock = ReportClock("train")
    time.sleep(0.05)
    path = finish(clock).write(tmp_path)
    assert path == tmp_path / "reports" / "train.json"
    report = json.loads(path.read_text())
    assert set(report) == KEYS
    assert report["name"] == "train"
    started = datetime.fromisoformat(report["started"])
    assert started.tzinfo is not None
    assert 0 <= (started - began).total_seconds() < 5
    assert 0.05 <= report["seconds"] < 60
    assert report["config"] == {"retrieval": {"seed": 3, "path": "群/1"}}
    assert (report["protocol"], report["data_version"]) == ("leave-one-out", "d" * 64)
    assert report["git_commit"].removesuffix("-dirty") == git_commit().removesuffix("-dirty")
    assert {"python", "ray", "torch", "polars"} <= set(report["versions"])
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["memory_gib"] > 0


def test_figures_are_flat_numbers(tmp_path: Path) -> None:
    report = json.loads(finish(ReportClock("train")).write(tmp_path).read_text())
    assert report["figures"] == {"ndcg@10/two_tower": 0.25, "seconds/training": 3.0}
    with pytest.raises(ValidationError, match="figures"):
        finish(ReportClock("train"), figures={"ndcg@10": {"two_tower": 0.2}})
    with pytest.raises(ValidationError, match="figures"):
        finish(ReportClock("train"), figures={"ndcg@10/two_tower": "high"})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_figure(number: float) -> None:
    """JSON has no NaN: a file with one could not be read by others."""
    with pytest.raises(ValidationError, match="finite"):
        finish(ReportClock("train"), figures={"ndcg@10/two_tower": number})


def test_every_run_is_kept_beside_the_last_one(tmp_path: Path) -> None:
    first = finish(ReportClock("train"))
    later = first.model_copy(update={"started": first.started.replace(year=2031), "seconds": 9.0})
    first.write(tmp_path)
    path = later.write(tmp_path)
    assert json.loads(path.read_text())["seconds"] == 9
    kept = sorted(file.name for file in (tmp_path / "reports").iterdir())
    assert kept == sorted(
        [f"train-{first.started:%Y%m%dT%H%M%S}.json", f"train-2031{first.started:%m%dT%H%M%S}.json", "train.json"]
    )
