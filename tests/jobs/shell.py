"""Commands as a person types them, in an environment of their own, and a look at what they leave behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cluster.provenance import ROOT


class Shell:
    """A shell with `.venv` active, at the root of the repository or, for what is no `make` or `ray`, in `folder`."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = dict(settings)

    def run(self, command: str, timeout: float = 1200) -> str:
        """What the command printed, both streams; it must succeed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._place(command),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def started(self, command: str, until: str, timeout: float = 1200) -> Iterator["Started"]:
        """The command, from when it printed `until`; it is interrupted at the end if it still runs."""
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self._place(command),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started = Started(process)
        try:
            started.wait_for(until, timeout)
            yield started
        finally:
            started.interrupt()

    def left_behind(self, seconds: float = 120) -> list[str]:
        """Command lines of processes that still carry this shell's TOWERLINE_HOME after so many seconds."""
        deadline = time.monotonic() + seconds
        while (found := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _processes(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TOWERLINE_HOME") == self.settings["TOWERLINE_HOME"]:
                    found.append(" ".join(process.cmdline()))
        return found

    def _place(self, command: str) -> Path:
        return ROOT if re.search(r"(^|\s)(make|ray) ", command) else self.folder

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **self.settings}


class Started:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return "".join(self._lines)

    def wait_for(self, text: str, timeout: float) -> None:
        """Return once it printed `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            assert self._process.poll() is None, f"it ended before it said {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"it has not said {text!r}:\n{self.output}"
            time.sleep(0.1)

    def wait(self, timeout: float = 1200) -> int:
        """Its exit status."""
        status = self._process.wait(timeout)
        self._reader.join(timeout=60)
        return status

    def interrupt(self) -> int:
        """Ctrl-C, to the whole foreground group as a terminal sends it; its exit status."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        return self.wait(timeout=300)

    def peak_pss_bytes(self) -> int:
        """The most memory it and its descendants held at once until they ended: PSS, shared memory in fair parts."""
        peak = 0
        while self._process.poll() is None:
            peak = max(peak, sum(map(_pss_bytes, _family(self._process.pid))))
            time.sleep(1)
        return peak

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as printed:
            self._lines.extend(printed)


def _family(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def _pss_bytes(pid: int) -> int:
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return 1024 * int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
    return 0
