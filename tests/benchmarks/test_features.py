"""The whole benchmark at its smallest size: all sides agree, and all figures are there."""

import json
from pathlib import Path

import pytest

from benchmarks.features import main


@pytest.mark.cluster
def test_the_smallest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    main(["--sizes", "20k", "--repeats", "1", "--without-online"])
    report = json.loads((tmp_path / "reports" / "bench_features.json").read_text())
    figures = report["figures"]
    assert {
        *(f"{metric}/{side}/20k" for metric in ("wall_s", "cpu_s", "peak_rss_mb") for side in ("ours", "polars")),
        *(f"wall_s/point_in_time/{side}" for side in ("ours", "polars", "duckdb")),
        "wall_ratio/polars/20k",
        "rows_per_s/point_in_time/ours",
        "bytes_mb/written/20k",
    } <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert (tmp_path / "reports" / "bench_features.png").stat().st_size > 10_000
    assert not (tmp_path / "bench" / "out").exists()
