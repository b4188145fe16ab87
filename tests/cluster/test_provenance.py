import subprocess
from pathlib import Path

import pytest

from cluster.provenance import git_commit, machine, versions


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_named_and_a_change_shows(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    _git(tmp_path, "add", "a")
    _git(tmp_path, "commit", "-qm", "one")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_without_git_the_environment_then_the_package_names_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "_ray_pkg_0123abcd"
    package.mkdir()
    monkeypatch.delenv("TOWERLINE_GIT_COMMIT", raising=False)
    assert git_commit(package) == "ray-package-0123abcd"
    assert git_commit(tmp_path) == "unknown"
    monkeypatch.setenv("TOWERLINE_GIT_COMMIT", "feedc0de")
    assert git_commit(package) == "feedc0de"


def test_versions_and_machine_are_those_of_this_process() -> None:
    import torch

    assert versions()["torch"] == torch.__version__
    assert int(machine()["cores"]) >= 1
