"""The whole benchmark at its smallest size: all sides train, and all figures are there."""

import json
from pathlib import Path

import pytest

from benchmarks.training import main
from benchmarks.training_sides import PAIRS, SIDES, Trained, summary
from tests.train.planted import plant


def _trained(samples_per_s: float) -> Trained:
    return Trained(samples_per_s, cpu_s=100 / samples_per_s, start_s=1, peak_mb=samples_per_s, data_wait=0)


def test_ratios_are_taken_within_a_repeat() -> None:
    """The second repeat met a machine that was twice as slow for both, the third one for one of them."""
    taken = {side.place: [_trained(100), _trained(50), _trained(100)] for side in SIDES}
    taken["horovod/w2"] = [_trained(90), _trained(45), _trained(40)]
    figures = summary(taken, batches=2)
    assert figures["ratio/horovod/w2_to_ddp"] == pytest.approx(0.9)
    assert figures["ratio/horovod/w1_to_plain"] == 1
    assert figures["samples_per_s/horovod/w2"] == 45
    assert figures["efficiency/horovod/w2"] == pytest.approx(0.45)
    assert figures["cpu_ms_per_batch/ddp/w2"] == pytest.approx(500)
    assert figures["peak_mb/horovod/w2"] == 90


@pytest.mark.cluster
def test_the_smallest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path)
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    size = ["--examples", "512", "--batch-size", "32", "--epochs", "1", "--repeats", "1"]
    main(["--dataset", "planted", *size, "--exchange", "horovod/default", "horovod/fp16"])
    figures = json.loads((tmp_path / "reports" / "bench_train.json").read_text())["figures"]
    assert {f"samples_per_s/{side.place}" for side in SIDES} <= set(figures)
    assert {f"ratio/{above}_to_{below.split('/')[0]}" for above, below in PAIRS} <= set(figures)
    assert figures["kb_per_batch/horovod/fp16"] < 0.8 * figures["kb_per_batch/horovod/default"]
    assert figures["loss_difference/horovod/w4"] < 1e-3
    assert all(figures[f"{metric}/horovod/w2"] > 0 for metric in ("peak_mb", "start_s", "efficiency"))
    assert (tmp_path / "reports" / "bench_train.png").stat().st_size > 10_000
