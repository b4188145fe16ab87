"""Set-up for real, with a small project of its own: a copy of `cluster/`, wheels from a folder, no network."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

from cluster.assets import cache_folder
from cluster.errors import TowerlineError
from cluster.horovod.build_wheel import patch, wheel_folder

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.base_prefix, "bin", "python3.11")
PYPROJECT = """
[project]
name = "towerline"
dependencies = ["torch==2.13.0"]
[project.optional-dependencies]
dev = ["sample"]
"""


def _wheel(folder: Path, name: str, version: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"version = '{version}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class Clone:
    """A clone whose dependencies are small and lie in a folder, and whose Horovod and assets are cached."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone"
        shutil.copytree(ROOT / "cluster", self.root / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "constraints.txt").write_text("sample==1.0\n")
        shelf = folder / "shelf"
        shelf.mkdir()
        for name, version in (("torch", "2.13.0"), ("sample", "1.0"), ("sample", "2.0"), ("wheel", "1.0")):
            _wheel(shelf, name, version)
        wheels = folder / "cache" / "wheels" / wheel_folder("cp311", "2.13.0").name
        wheels.mkdir(parents=True)
        _wheel(wheels, "horovod", "0.28.1")
        (folder / "cache" / "assets").symlink_to(cache_folder() / "assets")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TOWERLINE_CACHE": str(folder / "cache"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(shelf),
        }

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(PYTHON), "-m", "cluster.install"],
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def install(self, **environment: str) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(**environment)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def version_of(self, package: str) -> str:
        script = f"import {package}; print({package}.version)"
        command = [str(self.root / ".venv" / "bin" / "python"), "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_set_up_is_done_once_and_again_when_the_constraints_change(clone: Clone) -> None:
    assert clone.install()[0] == 0
    assert [clone.version_of(name) for name in ("sample", "horovod")] == ["1.0", "0.28.1"]
    python = clone.root / ".venv" / "bin" / "python"
    where = [str(python), "-c", "import cluster; print(cluster.__file__)"]
    imported = subprocess.run(where, cwd="/", capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == str(clone.root / "cluster" / "__init__.py")

    assert clone.install(PIP_FIND_LINKS="/nowhere", CXX="no-compiler") == (0, ""), "nothing to do, nothing needed"

    (clone.root / "constraints.txt").write_text("sample==2.0\n")
    assert clone.install()[0] == 0
    assert clone.version_of("sample") == "2.0"


def test_a_half_made_environment_is_made_again(clone: Clone) -> None:
    (clone.root / ".venv" / "bin").mkdir(parents=True)
    (clone.root / ".venv" / "pyvenv.cfg").write_text("home = /nowhere\n")
    (clone.root / ".venv" / "bin" / "python").write_text("half a file")
    assert clone.install()[0] == 0
    assert clone.version_of("sample") == "1.0"


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.cluster),
        pytest.param(signal.SIGTERM, marks=pytest.mark.cluster),
    ],
)
def test_an_interrupted_set_up_is_finished_by_the_next(clone: Clone, number: signal.Signals) -> None:
    with clone.start() as process:
        pip = clone.root / ".venv" / "bin" / "pip"
        while not pip.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        process.wait(timeout=300)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == (130 if number != signal.SIGKILL else -number)
    assert ("run the same command again to go on" in output) == (number != signal.SIGKILL)
    assert clone.install()[0] == 0
    assert clone.version_of("horovod") == "0.28.1"


def test_a_missing_compiler_is_told_before_anything_is_downloaded(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, output = clone.install(PATH=str(tmp_path / "empty"))
    assert status == 1
    assert "error: a C++ compiler is missing (looked for c++, g++, clang++); apt-get install g++" in output
    assert "make is missing; apt-get install make" in output
    assert not (clone.root / ".venv").exists()


def test_a_compiler_without_cpp17_is_told(clone: Clone, tmp_path: Path) -> None:
    compiler = tmp_path / "old-c++"
    compiler.write_text("#!/bin/sh\necho \"unrecognized option '-std=c++17'\" >&2; exit 1\n")
    compiler.chmod(0o755)
    status, output = clone.install(CXX=str(compiler))
    assert status == 1
    assert f"the C++ compiler {compiler} cannot build a C++17 program (unrecognized option '-std=c++17')" in output


def test_headers_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cluster import install

    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert "Python's headers (Python.h) are missing; apt-get install python3.11-dev" in install.missing(tmp_path)


def test_a_failing_step_shows_what_pip_said(clone: Clone) -> None:
    (clone.root / "constraints.txt").write_text("sample==3.0\n")
    status, output = clone.install()
    assert status == 1
    assert "run the same command again to go on" in output
    assert "ERROR: Cannot install sample because" in output


def test_a_recipe_that_does_not_fit_the_sources_says_so(tmp_path: Path) -> None:
    cmake = tmp_path / "CMakeLists.txt"
    cmake.write_text("set(CMAKE_CXX_STANDARD 20)\n")
    with pytest.raises(TowerlineError, match="the recipe does not fit these sources"):
        patch(cmake, "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)")


def test_set_up_needs_nothing_but_the_standard_library() -> None:
    code = "import cluster.install, cluster.assets"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)
