"""What can go away under a running service, how it is made to go, and when everything is back."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil
import ray.serve

from benchmarks.checked_load import NOT_FULL, Notes
from cluster.errors import TowerlineError
from serve.app import NAME

QUIET_S = 3.0
"""So long only full answers come before a fault counts as over."""
GIVEN_UP_AFTER_S = 180.0


def replicas(deployment: str, of: psutil.Process | None = None) -> list[psutil.Process]:
    """The replicas of a deployment among the descendants of a process, which is this one if none is given."""
    title, found = f"ServeReplica:{NAME}:{deployment}", []
    for process in (of or psutil.Process()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_one(deployment: str) -> None:
    """Kill -9 of one replica. Returns when it is dead."""
    process = replicas(deployment)[0]
    process.kill()
    process.wait(10)


def is_whole(wanted: Mapping[str, int]) -> bool:
    """Whether so many replicas of each deployment run, as the machine and as Ray Serve see it."""
    deployments = ray.serve.status().applications[NAME].deployments
    return all(
        len(replicas(name)) == count and deployments[name].replica_states == {"RUNNING": count}
        for name, count in wanted.items()
    )


@dataclass(frozen=True)
class Recovery:
    """What a fault cost."""

    failed: int
    degraded: int
    wrong: int
    recovery_s: float
    """From the fault until all answers were full again, and came."""
    gap_s: float
    """The longest time without a full answer."""
    whole_s: float
    """From the fault until everything was back that was there before."""

    def figures(self, fault: str) -> dict[str, float]:
        """For a report."""
        return {f"{metric}/{fault}": float(value) for metric, value in vars(self).items()}


def strike(fault: Callable[[], object], notes: Notes, whole: Callable[[], bool]) -> Recovery:
    """Let something happen and wait until it is over.

    Raises TowerlineError if it is not over after some minutes.
    """
    struck = time.monotonic()
    fault()
    whole_s = 0.0
    while not whole_s or not notes.are_full_since(max(over(notes, struck), struck + whole_s), QUIET_S):
        if time.monotonic() > struck + GIVEN_UP_AFTER_S:
            last = f"; the last: {notes.others[-1].why}" if notes.others else ""
            raise TowerlineError(
                f"{GIVEN_UP_AFTER_S:.0f} s after a fault not everything is back, or not every answer is full{last}"
            )
        time.sleep(0.2)
        if not whole_s and whole():
            whole_s = time.monotonic() - struck
    counts = {ending: len(notes.since(struck, ending)) for ending in NOT_FULL}
    gaps = [end - max(begin, struck) for begin, end in notes.gaps if end > struck]
    recovery_s = over(notes, struck) - struck
    return Recovery(**counts, recovery_s=recovery_s, gap_s=max(gaps, default=0.0), whole_s=whole_s)


def over(notes: Notes, struck: float) -> float:
    """When the last answer came that was not full, or had been waited for long; `struck` if none has since.

    A wait that begins after `QUIET_S` of full answers has another cause.
    """
    end = max([struck, *(seen.ended for seen in notes.others[-1:])])
    for gap_begin, gap_end in notes.gaps:
        if gap_begin < end + QUIET_S:
            end = max(end, gap_end)
    return end
