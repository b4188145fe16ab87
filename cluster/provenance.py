"""What a figure came from: the commit, the versions of what was installed and the machine."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
"""The repository, or the unpacked copy of it that a submitted job runs in."""

_PACKAGES = ("ray", "torch", "horovod", "polars", "pyarrow", "numpy", "mlflow", "optuna", "xllamacpp")


def git_commit(root: Path = ROOT) -> str:
    """Name the code that runs: the commit (`-dirty` when files differ from it), or the nearest thing to it.

    A submitted job has no `.git`; there it is `TOWERLINE_GIT_COMMIT`, or the content hash of the package that Ray
    unpacked (`ray-package-<hash>`). "unknown" when there is none of these.
    """
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        described = subprocess.run(command, capture_output=True, text=True, check=False)
        if described.returncode == 0:
            return described.stdout.strip()
    if commit := os.environ.get("TOWERLINE_GIT_COMMIT"):
        return commit
    package = re.search(r"_ray_pkg_([0-9a-f]+)", str(root))
    return f"ray-package-{package[1]}" if package else "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a figure may depend on; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int | float]:
    """Operating system, processor, usable cores and memory in GiB of the machine this process runs on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    try:
        names = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = None
    return names[1] if names else platform.machine()
