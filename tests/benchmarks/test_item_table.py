"""The benchmark of the item table on a catalogue that is small enough for a test."""

import json
from pathlib import Path

import pytest

from benchmarks.item_table import SIDES, main
from data.dataset import open_dataset


@pytest.mark.cluster
def test_sparse_gradients_take_less_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    size = ["--items", "100000", "--events", "2000", "--batch-size", "64", "--steps", "2", "--repeats", "1"]
    main([*size, "--dim", "16"])
    figures = json.loads((tmp_path / "reports" / "bench_item_table.json").read_text())["figures"]
    assert open_dataset(tmp_path, "catalogue-100000-2000").manifest.items == 100_000
    for metric in ("exchange_samples_per_s", "exchange_cpu_ms_per_batch", "kb_per_batch", "exchange_peak_mb"):
        assert all(figures[f"{metric}/{side}"] > 0 for side in SIDES)
    assert figures["ratio/speedup/sparse_to_dense"] > 1
    assert figures["ratio/peak/sparse_to_dense"] < 1
    assert figures["ratio/sent/sparse_to_dense"] < 0.2
