"""Every command of the README, in its order, as a newcomer types it."""

import ast
import csv
import json
import random
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import confluent_kafka
import nbclient
import nbformat
import pytest
from mlflow import MlflowClient

from cluster.provenance import ROOT
from cluster.settings import Settings
from jobs.demo import SHARE_OF_FULL
from tests.jobs.shell import Shell
from tests.ports import free_port
from train.registry import load_pair, newest_pair, read_evaluated, register_ranking, register_retrieval
from train.tracking import TrackingTarget, start_run

pytestmark = pytest.mark.cluster

COMMANDS = re.findall(r"^\$ (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
DEMO = [command for command in COMMANDS if command == "make demo"]
ENDPOINT = [command for command in COMMANDS if command == "make serve" or command.startswith("curl")]
PYTHON = [command for command in COMMANDS if command.startswith("python")]
LATER_EVENTS = [command for command in PYTHON if re.search("stream_events|check_skew|--appended", command)]
FEATURES = [command for command in PYTHON if "jobs.build_features" in command]
WHO_SERVES = [command for command in PYTHON if re.search("compare_|promote_|list_prom|rollback_", command)]
EXPORT = [command for command in PYTHON if "jobs.export_models" in command]
OWN_EVENTS = [command for command in PYTHON if command not in {*LATER_EVENTS, *FEATURES, *WHO_SERVES, *EXPORT}]
BENCHMARKS = [command for command in COMMANDS if command.startswith("make bench-")]
CLUSTER = [command for command in COMMANDS if command.startswith(("make cluster", "ray", "TOWERLINE_RAY_ADDRESS"))]
RUN_BY_CI = {"make lint", "make test", "make install-servers", "make test-cluster"}
WITHOUT_NETWORK = f"unshare --map-root-user --net python {ROOT}/tests/jobs/offline.py"
SIX_GB = 6 * 10**9


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """One home for all: what one command leaves, the next finds."""
    settings = {
        "TOWERLINE_HOME": str(tmp_path_factory.mktemp("home")),
        "TOWERLINE_SERVE_PORT": str(free_port()),
        "TOWERLINE_DASHBOARD_PORT": str(free_port()),
    }
    shell = Shell(tmp_path_factory.mktemp("folder"), settings)
    yield shell
    shell.run("make cluster-down")
    assert not shell.left_behind()


def test_no_command_is_forgotten() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    run_by_ci = {command for command in RUN_BY_CI if command.removeprefix("make ") in ci}
    run_here = {command for commands in (DEMO, ENDPOINT, PYTHON, CLUSTER, BENCHMARKS) for command in commands}
    assert set(COMMANDS) == run_by_ci | run_here


def test_an_interrupted_demo_leaves_no_process_and_says_how_to_go_on(shell: Shell) -> None:
    for moment in ("trial 1", "epoch 2"):
        with shell.started("python -m jobs.quickstart", until=moment) as demo:
            status = demo.interrupt()
        assert status == 130, demo.output
        assert "run the same command again to go on" in demo.output
        assert "Traceback" not in demo.output
        assert not shell.left_behind()


def test_the_demo_goes_on_to_its_report_without_a_network_and_within_6_gb(shell: Shell) -> None:
    with shell.started(f"{WITHOUT_NETWORK} {DEMO[0]}", until="Data") as demo:
        peak = demo.peak_pss_bytes()
        assert demo.wait() == 0, demo.output
    assert "passed: two-tower NDCG@10" in demo.output
    assert "passed: two-tower + ranker" in demo.output
    assert peak < SIX_GB
    reports = Path(shell.settings["TOWERLINE_HOME"], "reports")
    figures = json.loads((reports / "quickstart.json").read_text())["figures"]
    assert figures["ndcg@10/two_tower"] >= 1.6 * figures["ndcg@10/popularity"]
    assert figures["ndcg@10/two_tower_ranker"] >= figures["ndcg@10/two_tower"]
    assert figures["share_of_full/two_tower_ranker"] >= SHARE_OF_FULL
    assert re.search(r"training took \d+ s, the search aside; at most 100 s is promised", demo.output)
    assert "data:image/png" in (reports / "quickstart.html").read_text()
    assert not shell.left_behind()


def test_the_endpoint_stays_up_and_answers(shell: Shell) -> None:
    serve, recommend, similar, feedback = ENDPOINT
    with shell.started(serve, until="stop with Ctrl-C") as endpoint:
        answer = json.loads(shell.run(_at_our_ports(recommend, shell)))
        assert len(answer["items"]) == 5
        assert answer["items"][0]["explanation"]
        assert json.loads(shell.run(_at_our_ports(similar, shell)))["title"] == "Star Wars"
        assert json.loads(shell.run(_at_our_ports(feedback, shell)))["stored"] == 1
        endpoint.interrupt()
    assert "Traceback" not in endpoint.output
    assert not shell.left_behind()


def test_your_own_events_become_an_endpoint_that_a_stream_feeds(shell: Shell, kafka_bootstrap: str) -> None:
    _write_shop(shell.folder)
    *jobs, serve = OWN_EVENTS
    for job in jobs:
        shell.run(job)
    _promote_and_go_back(shell)
    (export,) = EXPORT
    assert "student_int8" in shell.run(export)
    stream, check_skew, add_appended = LATER_EVENTS
    with shell.started(serve, until="stop with Ctrl-C"):
        with shell.started(stream.replace("127.0.0.1:9092", kafka_bootstrap), until="following") as follower:
            _click(kafka_bootstrap, "visitor 1 / ω", "sku/1 é")
            follower.wait_for("1 events handled", timeout=300)
            assert follower.interrupt() == 0, follower.output
        body = json.dumps({"user_id": "visitor 1 / ω", "count": 3})
        url = f"http://127.0.0.1:{shell.settings['TOWERLINE_SERVE_PORT']}/v1/recommend"
        answer = json.loads(shell.run(f"curl -s {url} -H 'Content-Type: application/json' -d '{body}'"))
        assert answer["known_user"]
        assert len(answer["items"]) == 3
    assert "no difference" in shell.run(check_skew)
    assert "feedback and streams" in shell.run(add_appended)


def test_the_features_of_your_own_events(shell: Shell) -> None:
    listed, checked, built = [shell.run(command) for command in FEATURES]
    assert "user_activity" in listed
    assert "item_popularity" in checked
    assert "examples" in built


@pytest.mark.parametrize("command", BENCHMARKS)
def test_benchmarks_at_their_smallest(command: str, shell: Shell) -> None:
    """All sides agree, or it would fail, and all figures are there."""
    assert command == "make bench-features"
    shell.run(f"SIZES=20k REPEATS=1 {command}", timeout=1800)
    home = Path(shell.settings["TOWERLINE_HOME"])
    figures = json.loads((home / "reports" / "bench_features.json").read_text())["figures"]
    expected = {
        *(f"{metric}/{side}/20k" for metric in ("wall_s", "cpu_s", "peak_rss_mb") for side in ("ours", "polars")),
        *(f"wall_s/point_in_time/{side}" for side in ("ours", "polars", "duckdb")),
        "wall_ratio/polars/20k",
        "rows_per_s/point_in_time/ours",
        "bytes_mb/written/20k",
    }
    assert expected <= set(figures)
    assert all(figures[name] > 0 for name in expected)
    assert (home / "reports" / "bench_features.png").stat().st_size > 10_000
    assert not (home / "bench" / "out").exists()


def test_jobs_the_endpoint_and_the_notebook_run_on_a_cluster(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    up, submit, serve, down = CLUSTER
    shell.run(up)
    printed = shell.run(_at_our_ports(submit, shell))
    assert "epoch 1: loss" in printed
    home = Path(shell.settings["TOWERLINE_HOME"])
    version = re.findall(r"registered movielens-100k-two-tower version (\d+), alias challenger", printed)[0]
    client = MlflowClient(f"sqlite:///{home}/mlflow.db", f"sqlite:///{home}/mlflow.db")
    assert str(client.get_model_version_by_alias("movielens-100k-two-tower", "challenger").version) == version
    with shell.started(serve, until="stop with Ctrl-C"):
        for name, value in shell.settings.items():
            monkeypatch.setenv(name, value)
        notebook = nbformat.read(ROOT / "notebooks" / "01_quickstart.ipynb", as_version=4)  # type: ignore[no-untyped-call]
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(shell.folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    answer = ast.literal_eval(outputs[-1]["data"]["text/plain"])
    assert [bool(title) and isinstance(score, float) for title, score in answer] == [True] * 5
    shell.run(down)
    assert not shell.left_behind()


def _promote_and_go_back(shell: Shell) -> None:
    """With a second variant in the registry, which is as good as the first."""
    home = Path(shell.settings["TOWERLINE_HOME"])
    register_again(Settings(home=home), "shop")
    compare, promote, listed, roll_back = WHO_SERVES
    assert "compare_models.html" in shell.run(compare)
    assert "is champion now" in shell.run(promote)
    assert "the shop was redesigned" in shell.run(listed)
    assert "is champion again" in shell.run(roll_back)


def register_again(settings: Settings, dataset: str) -> None:
    """The newest pair of a data set once more, as another variant."""
    uri = settings.tracking_uri
    pair = newest_pair(uri, dataset)
    loaded, (cards, values) = load_pair(uri, pair), read_evaluated(uri, pair)
    other = {"variant": uuid.uuid4().hex}
    with start_run(TrackingTarget(tracking_uri=uri, experiment=dataset, run_name="again")) as run:
        register_retrieval(run, loaded.retrieval, cards["two-tower"].model_copy(update=other), loaded.items)
        register_ranking(run, loaded.ranking, cards["ranker"].model_copy(update=other), values)


def _at_our_ports(command: str, shell: Shell) -> str:
    ports = {"8000": "TOWERLINE_SERVE_PORT", "8265": "TOWERLINE_DASHBOARD_PORT"}
    return re.sub(r"(?<=:)(8000|8265)\b", lambda found: shell.settings[ports[found[0]]], command)


def _click(bootstrap: str, visitor: str, sku: str) -> None:
    """A message of a shop's topic, with the contract's names."""
    event = {"user_id": visitor, "item_id": sku, "event_time": datetime.now(UTC).isoformat()}
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap})
    producer.produce("clicks", json.dumps(event).encode())
    assert producer.flush(30) == 0


def _write_shop(folder: Path) -> None:
    """Visitors who keep to one brand, one who came once, and ids that need care."""
    draw = random.Random(7)
    products = [(f"sku/{number} é", f"brand {number % 4}", draw.choice(["red", "blue"])) for number in range(40)]
    with (folder / "products.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sku", "brand", "colour"), *products])
    with (folder / "clicks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("visitor", "sku", "at"))
        writer.writerow(("came once", products[0][0], 1_700_000_000))
        for visitor in range(80):
            liked = [product[0] for product in products if product[1] == f"brand {visitor % 4}"]
            for step in range(draw.randint(5, 9)):
                writer.writerow((f"visitor {visitor} / ω", draw.choice(liked), 1_700_000_000 + 86_400 * step + visitor))
