"""Python environments for what our own must not hold, made in the cache folder when they are first needed."""

import hashlib
import subprocess
import sysconfig
import venv
from pathlib import Path

from cluster.assets import cache_folder
from cluster.errors import TowerlineError

DUCKDB = "duckdb==1.4.1"
FEAST = ("feast==0.67.0", "redis==7.4.1", "hiredis==3.5.0", "pandas==2.3.3")


def python_with(*requirements: str) -> Path:
    """The Python of an environment with pinned requirements; the first names its folder."""
    return _environment(requirements[0].partition("[")[0].replace("==", "-"), requirements[0], requirements)


def python_from(requirements: Path, *options: str) -> Path:
    """The Python of an environment with all that a file of pinned requirements lists; `options` of pip."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    arguments = (*options, "--requirement", str(requirements))
    return _environment(f"{requirements.stem}-{digest}", requirements.name, arguments)


def python_beside_ours(requirements: Path) -> Path:
    """The Python of an environment with the packages of a file, all that it is to have, and behind them our own."""
    python = python_from(requirements, "--no-deps")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(python.parents[1])}))
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
    return python


def _environment(name: str, what: str, arguments: tuple[str, ...]) -> Path:
    folder = cache_folder() / f"bench-{name}"
    python, complete = folder / "bin" / "python", folder / ".complete"
    if not complete.exists():
        print(f"setting up {what} in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise TowerlineError(
                f"{' '.join(command)} failed; check the network and try again:\n{ended.stderr[-2000:]}"
            )
        complete.touch()
    return python
