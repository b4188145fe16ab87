"""The project as others see it: the built wheel, and the pins."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"cluster", "data", "jobs", "serve", "train", "tune"}


def test_the_wheel_holds_the_six_rooms_under_their_own_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("towerline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == ROOMS


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines), "a pin names no local build"
    pinned = {_normalized(line) for line in lines}
    assert {_normalized(requirement) for requirement in direct} <= pinned


def test_every_package_that_is_imported_is_a_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {_normalized(name) for name in project["dependencies"]}
    development = {_normalized(name) for name in project["optional-dependencies"]["dev"]}
    missing = {module for room in ROOMS for module in _undeclared(ROOT / room, direct)}
    assert missing | _undeclared(ROOT / "tests", direct | development) == set()


def test_the_image_for_vllm_pins_what_ray_asks_for_and_what_crosses_to_it() -> None:
    """What is pickled between its replicas and ours is of one version on both sides."""
    ours, theirs = _pins(ROOT / "constraints.txt"), _pins(ROOT / "cluster" / "vllm" / "constraints.txt")
    (vllm,) = (each for each in requires("ray") or () if each.startswith("vllm") and 'extra == "llm"' in each)
    assert f"=={theirs['vllm']};" in vllm
    differ = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert differ == {"fastapi", "grpcio-reflection", "numpy", "protobuf"}


def test_the_image_for_vllm_holds_what_a_replica_imports() -> None:
    lines = (ROOT / "cluster" / "vllm" / "requirements.txt").read_text().splitlines()
    required = {_normalized(line) for line in lines if not line.startswith("#")}
    assert required <= _pins(ROOT / "cluster" / "vllm" / "constraints.txt").keys()
    done = subprocess.run(
        [sys.executable, "-c", "import sys, serve.deployments; print(*{m.partition('.')[0] for m in sys.modules})"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    direct = {
        _normalized(each) for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    providers = packages_distributions()
    imported = {_normalized(name) for module in done.stdout.split() for name in providers.get(module, [])}
    assert imported & direct <= required


def _undeclared(folder: Path, declared: set[str]) -> set[str]:
    """Each import below `folder` whose package is not declared, with the file it is in."""
    known = sys.stdlib_module_names | ROOMS | {"tests", "benchmarks", "horovod"}
    providers = packages_distributions()
    return {
        f"{path.relative_to(ROOT)}: {module}"
        for path in folder.rglob("*.py")
        for module in _imported(path) - known
        if declared.isdisjoint(_normalized(name) for name in providers.get(module, []))
    }


def _imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _normalized(requirement: str) -> str:
    """The name in a requirement, as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>~]", requirement)[0]).lower()


def _pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {_normalized(line): line.partition("==")[2] for line in lines}
