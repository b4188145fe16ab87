"""Jobs submitted with `ray job submit` to the cluster of `make cluster-up`."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.local_cluster import LocalCluster
from cluster.provenance import ROOT
from cluster.settings import Settings

pytestmark = pytest.mark.cluster


def test_a_job_without_its_data_set_is_marked_failed_with_one_readable_line(
    local_cluster: tuple[Settings, LocalCluster],
) -> None:
    settings, cluster = local_cluster
    ray = str(Path(sys.executable).with_name("ray"))
    submit = [
        ray,
        "job",
        "submit",
        "--address",
        cluster.dashboard_url,
        "--submission-id",
        "no-data",
        "--working-dir",
        ".",
    ]
    done = subprocess.run(
        [*submit, "--", "python", "-m", "jobs.train_retrieval", "--dataset", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    client = JobSubmissionClient(cluster.dashboard_url)
    assert client.get_job_status("no-data") == JobStatus.FAILED
    assert done.returncode != 0
    message = f"error: data set 'nothing' does not exist in {settings.home}"
    assert message in client.get_job_logs("no-data")
    assert "Traceback" not in client.get_job_logs("no-data")
