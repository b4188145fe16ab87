"""Set-up, from a fresh clone to one that can run everything: `make install`, which every other target calls.

Run by the system's Python, so with the standard library only. Each step leaves a stamp when it is complete: a repeated
call does nothing, and one that was interrupted, however hard, is finished by the next.
"""

from __future__ import annotations  # so that an older Python can still say that it is too old

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.errors import TowerlineError

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (3, 11)
BUILD_TOOLS = ("pip", "setuptools", "wheel")
CPP17 = "#include <optional>\nint main() { return std::optional<int>{}.has_value(); }\n"


def main() -> None:
    """Bring this clone up to date, or exit with one line for each thing that is missing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        _check_python()
        if not is_up_to_date(ROOT):
            install(ROOT)
    except TowerlineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _check_python() -> None:
    if sys.version_info[:2] != PYTHON:
        found = ".".join(str(part) for part in sys.version_info[:3])
        raise TowerlineError(
            f"Python 3.11 is needed, {sys.executable} is {found}; apt-get install python3.11 python3.11-venv "
            "python3.11-dev, or name the one you have: make PYTHON=/path/to/python3.11"
        )


def is_up_to_date(root: Path) -> bool:
    """Whether there is nothing to do; costs the reading of a few small files."""
    return _has_stamp(root, "environment") and _has_stamp(root, "horovod") and _has_assets()


def install(root: Path) -> None:
    """Check the machine, then do the steps that are not complete.

    Raises:
        TowerlineError: the machine lacks something, or a step failed.
    """
    if problems := missing(root):
        raise TowerlineError("\n       ".join(problems))
    with _locked(root):
        if not _has_stamp(root, "environment"):
            with _timed("1/3 .venv with the packages of constraints.txt, some minutes"):
                _make_environment(root)
        if not _has_stamp(root, "horovod"):
            with _timed("2/3 Horovod, built from its sources the first time, about 3 minutes"):
                _install_horovod(root)
        if not _has_assets():
            with _timed("3/3 the MovieLens data set and a small language model, 100 MB"):
                _run([_python(root), "-m", "cluster.assets"], root)


def missing(root: Path) -> list[str]:
    """What set-up needs and this machine does not have: a line each, with the Debian package that brings it."""
    problems = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        problems.append("Python's venv module is missing; apt-get install python3.11-venv")
    if not _has_stamp(root, "horovod"):
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            problems.append("Python's headers (Python.h) are missing; apt-get install python3.11-dev")
        if problem := _compiler_problem():
            problems.append(problem)
        if shutil.which("make") is None:
            problems.append("make is missing; apt-get install make")
    return problems


def _compiler_problem() -> str | None:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((path for path in map(shutil.which, candidates) if path), None)
    if compiler is None:
        return f"a C++ compiler is missing (looked for {', '.join(candidates)}); apt-get install g++"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cc")
        source.write_text(CPP17)
        command = [compiler, "-std=c++17", str(source), "-o", str(source.with_suffix(""))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    reason = (done.stderr.strip().splitlines() or ["no message"])[0]
    return f"the C++ compiler {compiler} cannot build a C++17 program ({reason}); apt-get install g++"


def _make_environment(root: Path) -> None:
    """A new `.venv`: one that was left half-made, or made for other requirements, is not worth mending."""
    project = _project(root)
    requirements = [*BUILD_TOOLS, *project["dependencies"], *project["optional-dependencies"]["dev"]]
    shutil.rmtree(root / ".venv", ignore_errors=True)
    python = Path(sys.base_prefix, "bin", "python3.11")  # not sys.executable, which may be the one in .venv
    _run([str(python), "-m", "venv", str(root / ".venv")], root)
    _pip(root, "--constraint", str(root / "constraints.txt"), *requirements)
    site_packages = next((root / ".venv" / "lib").glob("python*")) / "site-packages"
    (site_packages / "towerline.pth").write_text(f"{root}\n")
    _stamp(root, "environment")


def _install_horovod(root: Path) -> None:
    """Horovod's wheel, from the cache or built now."""
    wheel = _run([_python(root), "-m", "cluster.horovod.build_wheel"], root)[-1]
    _pip(root, "--no-index", "--no-deps", "--force-reinstall", wheel)
    _stamp(root, "horovod")


def _has_assets() -> bool:
    from cluster.assets import ASSETS, is_cached

    return all(is_cached(asset) for asset in ASSETS)


def _python(root: Path) -> str:
    return str(root / ".venv" / "bin" / "python")


def _project(root: Path) -> dict[str, Any]:
    import tomllib

    return dict(tomllib.loads((root / "pyproject.toml").read_text())["project"])


def _pip(root: Path, *arguments: str) -> None:
    _run([_python(root), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off", *arguments], root)


def _stamp_text(root: Path, step: str) -> str:
    """What the step's result depends on."""
    made_of = [sys.version, sys.base_prefix, str(root), _project(root), (root / "constraints.txt").read_text()]
    if step == "horovod":
        made_of.append((root / "cluster" / "horovod" / "build_wheel.py").read_text())
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _has_stamp(root: Path, step: str) -> bool:
    try:
        return (root / ".venv" / f"{step}.stamp").read_text() == _stamp_text(root, step)
    except OSError:
        return False


def _stamp(root: Path, step: str) -> None:
    partial = root / ".venv" / f"{step}.stamp.partial"
    partial.write_text(_stamp_text(root, step))
    partial.replace(root / ".venv" / f"{step}.stamp")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One set-up of a clone at a time. Children inherit the lock, so that it outlives a set-up that was killed."""
    folder = os.open(root, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another set-up is at work in this clone; waiting for it", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(folder)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"set-up {what} …", flush=True)
    started = time.monotonic()
    yield
    print("\r\033[K" * sys.stdout.isatty() + f"           done in {time.monotonic() - started:.0f} s", flush=True)


def _run(command: list[str], root: Path) -> list[str]:
    """The lines that `command` printed; on a terminal the latest one is shown while it runs.

    Raises:
        TowerlineError: it failed.
    """
    lines = []
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, close_fds=False,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if sys.stdout.isatty():
                    print(f"\r\033[K  {lines[-1][: shutil.get_terminal_size().columns - 3]}", end="", flush=True)
        except BaseException:
            _end_group(process)
            raise
    if process.returncode:
        told = [line for line in lines if line.lower().startswith("error")] or lines[-5:]
        shown = " ".join(command[:5])
        raise TowerlineError("\n       ".join([f"`{shown} …` failed; run the same command again to go on:", *told]))
    return lines


def _end_group(process: subprocess.Popen[str]) -> None:
    """Stop a step and everything it started, compilers included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
