"""Build Horovod's wheel once per Python, torch version and recipe, and print where it is.

Horovod 0.28.1 is the last release. Its sources ask for C++14, torch's headers have needed C++17 since 2.1; raised to 17
it builds and works. What else is changed stands with its reason in `_PATCHES`.

`python -m cluster.horovod.build_wheel`, run by an environment that has torch, numpy and Horovod's own dependencies; it
needs a C++ compiler and make. With `HOROVOD_GPU_OPERATIONS=NCCL` set, it is built for NCCL.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from cluster.assets import cache_folder
from cluster.errors import TowerlineError

HOROVOD = "horovod==0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
CMAKE = "cmake==3.31.10"
"""Taken from PyPI where the machine has none that fits: the bundled Gloo asks for a policy that CMake 4 dropped."""

LIBRARY = "horovod/torch/mpi_lib_v2"

_IDLE_MS = 50
"""Milliseconds after which a rank without gradients looks after the others: whether one leaves, or does not answer."""

_PATCHES = (
    ("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)"),
    ("horovod/torch/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 17)"),
    (
        # A path is taken for a regular expression here, which goes wrong in a folder with `+` in its name.
        "cmake/Utilities.cmake",
        'string(REGEX REPLACE "${PROJECT_SOURCE_DIR}(/)?" "" SUB_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")',
        'file(RELATIVE_PATH SUB_FOLDER "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")',
    ),
    (
        # Reserved but never sized, the list of ranks stays empty, and over Gloo nobody ever counts as stalled.
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_);",
        "global_ranks_.resize(size_);",
    ),
    (
        # Whoever waits for an exchange must not take the core from the threads that do it.
        "horovod/torch/mpi_ops_v2.cc",
        "std::this_thread::yield();",
        "std::this_thread::sleep_for(std::chrono::microseconds(50));",
    ),
    # While no rank has a gradient, ranks would ask each other for some at every cycle, which takes computing from the
    # training: who has none waits until there is one, or for `_IDLE_MS`.
    (
        "horovod/common/operations.cc",
        "    std::this_thread::sleep_for(sleep_duration);\n  }\n",
        (
            "    std::this_thread::sleep_for(sleep_duration);\n  }\n"
            f"  state.process_set_table.Get(0).tensor_queue.AwaitTensor(std::chrono::milliseconds({_IDLE_MS}));\n"
        ),
    ),
    (
        "horovod/common/tensor_queue.h",
        "#include <iostream>\n",
        "#include <chrono>\n#include <condition_variable>\n#include <iostream>\n",
    ),
    (
        "horovod/common/tensor_queue.h",
        "  void RemoveJoinTensor();\n",
        (
            "  void RemoveJoinTensor();\n\n"
            "  void AwaitTensor(std::chrono::milliseconds most) {\n"
            "    std::unique_lock<std::mutex> lock(mutex_);\n"
            "    filled_.wait_for(lock, most, [this] { return !tensor_table_.empty(); });\n"
            "  }\n"
        ),
    ),
    (
        "horovod/common/tensor_queue.h",
        "  mutable std::mutex mutex_;\n",
        "  mutable std::mutex mutex_;\n\n  std::condition_variable filled_;\n",
    ),
    (
        "horovod/common/tensor_queue.cc",
        "  message_queue_.push(std::move(message));\n  return Status::OK();\n",
        "  message_queue_.push(std::move(message));\n  filled_.notify_one();\n  return Status::OK();\n",
    ),
    (
        "horovod/common/tensor_queue.cc",
        "    message_queue_.push(std::move(messages[i]));\n  }\n",
        "    message_queue_.push(std::move(messages[i]));\n  }\n  filled_.notify_one();\n",
    ),
)
_BUILD = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
}
_MEMORY_PER_COMPILER = 2 * 2**30


def wheel_folder(python_tag: str, torch_version: str) -> Path:
    """Where the wheel for this Python, torch and recipe is kept; a build for NCCL is another wheel."""
    operations = os.environ.get("HOROVOD_GPU_OPERATIONS", "")
    suffix = f"-{operations.lower()}" if operations else ""
    recipe = hashlib.sha256(repr((SHA256, _PATCHES, _BUILD)).encode()).hexdigest()[:8]
    return cache_folder() / "wheels" / f"{python_tag}-torch{torch_version}{suffix}-{recipe}"


def build_wheel() -> Path:
    """Path of the wheel for the running Python and the installed torch, built unless the cache has it.

    Raises:
        TowerlineError: the sources cannot be downloaded, are not the ones that are pinned, or do not compile.
    """
    folder = wheel_folder(f"cp{sys.version_info.major}{sys.version_info.minor}", version("torch"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if built := list(folder.glob("horovod-*.whl")):
            return built[0]
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        log = folder.with_name(f"{folder.name}.log")
        wheel = _compile(_patched_sources(partial, log), _cmake(partial, log), partial, log)
        folder.mkdir(exist_ok=True)
        wheel = wheel.rename(folder / wheel.name)
        shutil.rmtree(partial)
    return wheel


def _patched_sources(partial: Path, log: Path) -> Path:
    """Horovod's sources with C++17; pip checks the hash before it runs anything of what it downloaded."""
    requirement = partial / "requirement.txt"
    requirement.write_text(f"{HOROVOD} --hash=sha256:{SHA256}\n")
    command = ["download", "--no-deps", "--no-binary=horovod", "--no-build-isolation", "--require-hashes"]
    _pip([*command, f"--dest={partial}", f"--requirement={requirement}"], f"download {HOROVOD}", log)
    with tarfile.open(next(partial.glob("horovod-*.tar.gz"))) as archive:
        archive.extractall(partial, filter="data")
    sources = partial / HOROVOD.replace("==", "-")
    for name, old, new in _PATCHES:
        patch(sources / name, old, new)
    return sources


def patch(path: Path, old: str, new: str) -> None:
    """Replace `old`, which must be there, by `new`.

    Raises:
        TowerlineError: `path` does not hold `old`.
    """
    text = path.read_text()
    if old not in text:
        raise TowerlineError(f"{path}: no `{old}` to change to `{new}`; the recipe does not fit these sources")
    path.write_text(text.replace(old, new))


def _cmake(partial: Path, log: Path) -> str:
    """The machine's CMake if it is 3.13 or a later 3.x, else one installed for this build alone."""
    if found := shutil.which("cmake"):
        printed = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"version (\d+)\.(\d+)", printed)
        if release and (3, 13) <= (int(release[1]), int(release[2])) < (4, 0):
            return found
    _pip(["install", "--no-deps", f"--target={partial / 'cmake'}", CMAKE], f"install {CMAKE} for the build", log)
    return str(partial / "cmake" / "cmake" / "data" / "bin" / "cmake")


def _compile(sources: Path, cmake: str, partial: Path, log: Path) -> Path:
    environment = os.environ | _BUILD | {"HOROVOD_CMAKE": cmake, "MAKEFLAGS": f"-j{_compilers()}"}
    for name in ("MFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    command = ["wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir", f"--wheel-dir={partial}"]
    _pip([*command, str(sources)], f"build {HOROVOD}", log, environment)
    wheel = next(partial.glob("horovod-*.whl"))
    if not any(name.startswith(LIBRARY) for name in zipfile.ZipFile(wheel).namelist()):
        raise TowerlineError(
            f"{wheel.name} was built without {LIBRARY}, which torch needs; the build's output is in {log}"
        )
    return wheel


def _compilers() -> int:
    """How many compilers at once: one per usable core, as far as memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // _MEMORY_PER_COMPILER))


def _pip(command: list[str], what: str, log: Path, environment: dict[str, str] | None = None) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with log.open("w") as output:
        done = subprocess.run([*pip, *command], stdout=output, stderr=subprocess.STDOUT, check=False, env=environment)
    if done.returncode:
        problems = [line for line in log.read_text().splitlines() if re.search(r"error|hash", line, re.IGNORECASE)]
        message = f"pip could not {what}; its whole output is in {log}"
        raise TowerlineError("\n  ".join([message, *problems[:8]]))


if __name__ == "__main__":
    try:
        print(build_wheel())
    except TowerlineError as error:
        sys.exit(f"error: {error}")
