"""What Prometheus finds of a cluster: the sum over the gateway's replicas is what was sent, whoever answered it."""

import shutil
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from cluster.monitoring.prometheus import prometheus_config
from cluster.provenance import ROOT
from cluster.settings import Settings
from data.dataset import Dataset
from tests.jobs.shell import Shell
from tests.ports import free_port
from tests.serve.prometheus import Prometheus, wrk
from tests.waiting import wait_for

pytestmark = pytest.mark.cluster

CONFIG = """
graph.explain = "off"
gateway_replicas = {min = 2, max = 2, num_cpus = 0.1}
"""
COUNTED = (
    'towerline_requests_total{endpoint="/v1/recommend",status="200"}',
    'towerline_request_duration_seconds_count{endpoint="/v1/recommend"}',
    'towerline_request_duration_seconds_bucket{endpoint="/v1/recommend",le="+Inf"}',
)
HAPPENED = (
    'sum(towerline_stage_duration_seconds_count{stage="ranking"}) >= bool 1',
    "sum(towerline_queue_duration_seconds_count) >= bool 400",
    "sum(towerline_batch_fill_ratio_count) >= bool 1",
    'sum(towerline_candidates_total{source="two_tower"}) >= bool 1',
)


def test_the_sum_over_the_replicas_is_what_was_sent(
    local_cluster: tuple[Settings, LocalCluster],
    shop: Dataset,
    settings: Settings,
    champion: dict[str, str],
    tmp_path: Path,
) -> None:
    cluster_settings, cluster = local_cluster
    shutil.copytree(shop.path.parent, tmp_path / "datasets" / "shop", symlinks=True)
    (tmp_path / "serve.toml").write_text(CONFIG)
    port = free_port()
    answering = f'towerline_model_info{{variant="variant-a",model="ranker",version="{champion["ranker"]}"'
    shell = Shell(
        ROOT,
        {
            "TOWERLINE_HOME": str(tmp_path),
            "TOWERLINE_MLFLOW_TRACKING_URI": settings.tracking_uri,
            "TOWERLINE_RAY_ADDRESS": cluster.gcs_address,
            "TOWERLINE_SERVE_PORT": str(port),
        },
    )
    serve = f"python -m jobs.serve_models --dataset shop --config {tmp_path / 'serve.toml'}"
    with Prometheus(prometheus_config(cluster_settings)) as prometheus:
        wait_for([1.0], lambda: prometheus.ask('up{job="ray"}'))
        # Other tests asked this cluster: what their replicas counted comes late, and goes at any moment.
        earlier = "|".join(prometheus.labels("towerline_model_info", "replica"))
        answering += f',replica!~"{earlier}"}} == 1'
        with shell.started(serve, until="stop with Ctrl-C"):
            sent = wrk(f"http://127.0.0.1:{port}/v1/recommend", tmp_path, threads=4, requests_each=100)
            assert sent == 400
            wait_for([2.0], lambda: prometheus.ask(f"count({answering})"))
            replicas = "|".join(prometheus.labels(answering, "replica"))
            ours = [each.replace("}", f',replica=~"{replicas}"}}') for each in COUNTED]
            wait_for([[float(sent)]] * len(ours), lambda: [prometheus.ask(f"sum({each})") for each in ours])
            by_replica = prometheus.ask(f"sum({ours[0]}) by (replica)")
            assert len(by_replica) == 2
            assert all(answered > 0 for answered in by_replica)
            assert [prometheus.ask(query) for query in HAPPENED] == [[1.0]] * len(HAPPENED)
