"""`python -m jobs.serve_models` as people type it."""

import subprocess
import sys
from pathlib import Path


def serve_models(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.serve_models", *arguments]
    environment = {"TOWERLINE_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_a_data_set_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    done = serve_models(tmp_path, "--dataset", "shoes")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data set 'shoes' does not exist")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "datasets").exists()


def test_a_broken_config_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[graph]\ncandidates = 0\n")
    done = serve_models(tmp_path, "--dataset", "shoes", "--config", str(tmp_path / "c.toml"))
    assert done.returncode == 2
    assert "graph.candidates = 0" in done.stderr
    assert "Traceback" not in done.stderr
