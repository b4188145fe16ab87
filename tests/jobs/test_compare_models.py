"""Registered variants side by side, and the ledger as people read it: the jobs themselves over a real registry."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.features import feature_fingerprints
from jobs import compare_models, list_promotions, promote_model, rollback_model
from jobs.model_comparison import compare, tables_of
from tests.pages import Page
from tests.ports import free_port
from tests.train.told import Told, catalogue, told_cases
from train.card import Kind, ModelCard
from train.evaluation import Measurements, measure
from train.ledger import read_ledger
from train.promotion import promote, roll_back
from train.protocols import LeaveOneOut
from train.registry import register_ranking, register_retrieval
from train.tracking import TrackingTarget, start_run
from train.training_rows import TrainingRows

HISTORIES = {f"u{number}": "ab" for number in range(40)}
TARGETS = dict.fromkeys(HISTORIES, "c")
POPULAR = Told(dict.fromkeys(HISTORIES, "defghc"))
RIGHT = dict.fromkeys(HISTORIES, "cd")
LATE = {user: "dc" if number % 2 else "cd" for number, user in enumerate(HISTORIES)}


class Nothing:
    """A model without weights: what is compared here are cards and values."""

    item_vectors_ID = np.zeros((1, 1), dtype=np.float32)

    def save(self, folder: Path) -> None:
        (folder / "weights").touch()


def measured(lists: dict[str, str], cut_off: int = 0) -> Measurements:
    cases = told_cases(HISTORIES, TARGETS, protocol=LeaveOneOut(cut_off=cut_off))
    recommenders = {"popularity": POPULAR, "two_tower": Told(LATE), "two_tower_ranker": Told(lists)}
    found = measure(recommenders, cases, catalogue())
    extra = {"calibration_error/two_tower_ranker": 0.02, "latency_p95_ms/two_tower_ranker": 3.5}
    return Measurements(found.protocol, found.values, {**found.catalogue, **extra}, found.targets)


def register(settings: Settings, variant: str, measurements: Measurements, learning_rate: float) -> None:
    def card(kind: Kind) -> ModelCard:
        return ModelCard(
            kind=kind,
            variant=variant,
            dataset="shop",
            data_version="d1" * 32,
            trained_on=TrainingRows(),
            config={"two_tower": {"embedding_dim": 64}, "learning_rate": learning_rate, "<b>": learning_rate},
            scaling={"num_workers": 2, "backend": "none"},
            history_length=8,
            feature_fingerprints=feature_fingerprints(8),
            evaluation=measurements.evaluation,
            curve=[
                {"epoch": epoch, "loss": 7 - epoch, "seconds": 1, "samples_per_s": 9, "data_wait": 0, "ndcg@10": 0.1}
                for epoch in range(2)
            ],
            best_epoch=1,
            git_commit="c0ffee",
            versions={},
        )

    with start_run(TrackingTarget(tracking_uri=settings.tracking_uri, experiment="shop", run_name=variant)) as run:
        register_retrieval(run, Nothing(), card("two-tower"), pl.DataFrame({"item_id": ["a"]}))  # type: ignore[arg-type]
        register_ranking(run, Nothing(), card("ranker"), measurements.values)  # type: ignore[arg-type]


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a tracking server that keeps the artifacts itself."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([*command, *stores], stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://{address}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://{address}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`aaaa`, the champion, and `bbbb`, which is better; `cccc` was measured by another protocol."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    register(settings, "aaaa1111", measured(LATE), 0.001)
    register(settings, "bbbb2222", measured(RIGHT), 0.002)
    register(settings, "cccc3333", measured(RIGHT, cut_off=1), 0.002)
    return settings


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Run":
    monkeypatch.setenv("TOWERLINE_HOME", str(settings.home))
    monkeypatch.setenv("TOWERLINE_MLFLOW_TRACKING_URI", settings.mlflow_tracking_uri)
    return Run(capsys)


class Run:
    """What a job printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, job: object, *arguments: str) -> str:
        job.main(["--dataset", "shop", *arguments])  # type: ignore[attr-defined]
        return self._capsys.readouterr().out


def test_the_life_of_a_champion_from_the_command_line(settings: Settings, run: Run) -> None:
    """The first, a refusal with status 1, a promotion, the way back, and the ledger of it all."""
    assert "champion of data set shop: none" in run(list_promotions)
    assert "variant aaaa1111 is champion now (entry 1 of the ledger)" in run(promote_model, "--variant", "aaaa")
    assert "aaaa1111 is champion of data set shop already" in run(promote_model, "--variant", "aaaa", "--force", "why")
    with pytest.raises(SystemExit) as refused:
        run(promote_model)
    assert refused.value.code == 1
    promoted = run(promote_model, "--variant", "bbbb2222")
    assert "passed: ndcg@10 is +0.1845 against champion aaaa1111" in promoted
    assert "variant bbbb2222 is champion now (entry 2 of the ledger)" in promoted
    forced = run(promote_model, "--variant", "cccc", "--force", "a later cut-off")
    assert "(entry 3 of the ledger, forced: a later cut-off)" in forced
    assert "variant bbbb2222 is champion again, cccc3333 no longer (entry 4 of the ledger)" in run(rollback_model)
    assert "variant aaaa1111 is champion again" in run(rollback_model, "--to", "aaaa")
    told = run(list_promotions)
    assert "promotion by" in told
    assert "bbbb2222 -> cccc3333" in told
    assert "FAILED: measured by protocol" in told
    assert "forced: a later cut-off" in told
    assert told.splitlines()[-1] == "champion of data set shop: aaaa1111"
    entries = json.loads(run(list_promotions, "--json"))
    assert [entry["to_variant"] for entry in entries] == ["aaaa1111", "bbbb2222", "cccc3333", "bbbb2222", "aaaa1111"]
    assert entries[1]["gate"]["checks"][0]["passed"] is True
    compared_as_people_see_it(settings, run)


def compared_as_people_see_it(settings: Settings, run: Run) -> None:
    """The other protocol's variant is left out and named; the page needs nothing but itself."""
    printed = run(compare_models)
    assert "variant cccc3333 is left out: variant cccc3333 was measured by protocol" in printed
    assert "aaaa1111 (champion)" in printed
    text = (settings.home / "reports" / "compare_models.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for shown in ("0.001", "0.002", "c0ffee", "d1d1d1d1d1d1", "cold", "ranker.learning_rate", "<b>"):
        assert shown in page.text
    assert "ranker.two_tower.embedding_dim" not in page.text
    report = json.loads((settings.home / "reports" / "compare_models.json").read_text())
    assert report["figures"]["ndcg@10/bbbb2222"] == 1
    assert report["config"]["variants"] == ["aaaa1111", "bbbb2222"]


def test_the_differences_are_paired(settings: Settings) -> None:
    """Half of the users have the right item second in one and first in the other."""
    comparison = compare(settings, "shop", ["aaaa", "bbbb"])
    tables = tables_of(comparison)
    assert comparison.left_out == []
    (paired,) = [table for table in tables if table.title.startswith("Paired differences to aaaa1111")]
    (ndcg,) = [row for row in paired.rows if row[0] == "ndcg@10"]
    mean, low, high = (float(number.strip("[],")) for number in ndcg[1].split())
    assert mean == pytest.approx((1 - 1 / np.log2(3)) / 2, abs=1e-4)
    assert low < mean < high
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.heads)}


def test_variants_of_two_protocols_are_not_compared_when_named(settings: Settings) -> None:
    hashes = [measured(RIGHT, cut_off=cut_off).protocol.hash for cut_off in (1, 0)]
    message = f"variant cccc3333 was measured by protocol {hashes[0]}, aaaa1111 by protocol {hashes[1]}: not comparable"
    with pytest.raises(TowerlineError, match=message):
        compare(settings, "shop", ["aaaa", "cccc"])
    with pytest.raises(TowerlineError, match="no registered variants of data set 'shop' begin with 'dddd'"):
        compare(settings, "shop", ["dddd"])
    with pytest.raises(TowerlineError, match=r"no variant of data set 'shoes'; `python -m jobs.train_ranking"):
        compare(settings, "shoes", [])


@pytest.mark.cluster
def test_a_server_keeps_ledger_and_artifacts_too(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as address:
        settings = Settings(home=tmp_path, mlflow_tracking_uri=address)
        register(settings, "aaaa1111", measured(LATE), 0.001)
        register(settings, "bbbb2222", measured(RIGHT), 0.002)
        for variant in ("aaaa", "bbbb"):
            assert promote(address, "shop", variant).report.passed
        assert read_ledger(address, "shop").champion == "bbbb2222"
        assert roll_back(address, "shop").to_variant == "aaaa1111"
        assert [entry.number for entry in read_ledger(address, "shop").entries] == [1, 2, 3]
        shutil.rmtree(next((tmp_path / "artifacts").rglob("user_values.parquet")).parent)
        with pytest.raises(TowerlineError, match=r"of model 'shop-ranker': its artifact at .* is missing or cannot be"):
            compare(settings, "shop", ["aaaa", "bbbb"])


@pytest.mark.parametrize("job", ["compare_models", "list_promotions", "promote_model", "rollback_model"])
def test_help_needs_no_heavy_import(job: str) -> None:
    command = (
        f"import sys, jobs.{job}\ntry: jobs.{job}.parse(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "False"
