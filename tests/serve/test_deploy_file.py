"""The `serve.yaml` of a cluster: the arguments of `make serve`, and what Ray Serve makes of it."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.environment import FAST_SERVE
from cluster.local_cluster import LocalCluster
from cluster.settings import Settings
from jobs.serve_models import main
from serve.config import AppConfig, Replicas
from serve.deploy_file import deploy_config
from serve.graph import GraphConfig
from tests.ports import free_port

CONFIG = AppConfig(
    dataset="shop",
    graph=GraphConfig(candidates=20, ranking="remote"),
    gateway_replicas=Replicas(min=2, max=3, num_cpus=0.1),
)
TOML = """
[graph]
candidates = 20
[gateway_replicas]
num_cpus = 0.1
[explain_replicas]
num_cpus = 0.1
"""
SERVE = (sys.executable, "-m", "ray.serve.scripts")


def test_it_holds_all_arguments_and_the_settings_that_are_not_the_defaults(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, online_store="redis://store:6379/1", serve_port=8123, num_cpus=7)
    document = deploy_config(settings, CONFIG)
    (application,) = document["applications"]
    assert AppConfig.model_validate(application["args"]) == CONFIG
    assert document["controller_options"]["runtime_env"]["env_vars"]["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert application["runtime_env"]["env_vars"] == {
        **FAST_SERVE,
        "TOWERLINE_HOME": str(tmp_path),
        "TOWERLINE_ONLINE_STORE": "redis://store:6379/1",
    }
    assert document["http_options"]["port"] == 8123
    assert "grpc_options" not in document
    with_grpc = deploy_config(settings.model_copy(update={"serve_grpc_port": 9001}), CONFIG)
    assert with_grpc["grpc_options"]["port"] == 9001
    assert with_grpc["applications"] == document["applications"]


@pytest.mark.cluster
@pytest.mark.usefixtures("champion")
def test_a_cluster_serves_by_it(
    settings: Settings,
    local_cluster: tuple[Settings, LocalCluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port, dashboard = free_port(), local_cluster[1].dashboard_url
    monkeypatch.setenv("TOWERLINE_HOME", str(settings.home))
    monkeypatch.setenv("TOWERLINE_SERVE_PORT", str(port))
    (tmp_path / "serve.toml").write_text(TOML)
    file = tmp_path / "serve.yaml"
    main(["--dataset", "shop", "--config", str(tmp_path / "serve.toml"), "--write", str(file)])
    assert f"serve deploy {file}" in capsys.readouterr().out
    assert yaml.safe_load(file.read_text())["applications"][0]["args"]["graph"]["candidates"] == 20
    subprocess.run([*SERVE, "deploy", str(file), "--address", dashboard], check=True, capture_output=True, timeout=120)
    try:
        answer = answered(f"http://127.0.0.1:{port}/v1/recommend")
    finally:
        subprocess.run(
            [*SERVE, "shutdown", "--yes", "--address", dashboard], check=True, capture_output=True, timeout=120
        )
    assert answer["known_user"]
    assert answer["variant"] == "variant-a"
    assert len(answer["items"]) == 3


def answered(url: str) -> dict[str, object]:
    """The first answer of an endpoint that is coming up."""
    deadline = time.monotonic() + 300
    while True:
        try:
            response = httpx.post(url, json={"user_id": "user 3", "count": 3}, timeout=60)
            if response.status_code == 200:
                answer: dict[str, object] = response.json()
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the endpoint did not come up"
        time.sleep(0.5)
