"""How every job starts and ends: one readable line for an error, no process left behind after Ctrl-C."""

import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from pydantic import ValidationError

from cluster.disk import disk_problem, is_full
from cluster.environment import prepare_environment
from cluster.errors import TowerlineError

FAILED = 2
INTERRUPTED = 128 + signal.SIGINT


def run_job(main: Callable[[list[str]], None]) -> None:
    """Run `main` with the command-line arguments and exit with its status.

    0 when it returns; 2 with `error: …` and no traceback when a person can act on what went wrong (`TowerlineError`,
    a setting or config that does not validate, a full disk); 130 after Ctrl-C or SIGTERM. Anything else is a defect
    and keeps its traceback.
    """
    prepare_environment()
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for room in ("cluster", "data", "jobs", "serve", "train", "tune"):
        logging.getLogger(room).setLevel(logging.INFO)
    _interrupt_once()
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        _leave("interrupted; run the same command again to go on", INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        _leave(f"error: {message}", FAILED)


def explain(error: BaseException) -> str | None:
    """The line that tells a person what to do about `error`; None for a defect, which deserves its traceback."""
    seen: BaseException | None = error
    met: set[int] = set()
    while seen is not None and id(seen) not in met:
        met.add(id(seen))  # Ray's errors from several workers can be each other's causes.
        match seen:
            case TowerlineError() if not hasattr(seen, "cause"):
                return str(seen)
            case ValidationError():
                return _explain_validation(seen)
            case _ if (problem := disk_problem(seen)) and is_full(seen):
                place = f" ({seen.filename})" if isinstance(seen, OSError) and seen.filename else ""
                return f"{problem.wrong}{place}; {problem.next_step}"
        seen = _cause(seen)
    return None


def _cause(error: BaseException) -> BaseException | None:
    """What `error` was raised from; an error that came from a Ray worker carries it as `cause`."""
    carried = getattr(error, "cause", None)
    return carried if isinstance(carried, BaseException) else error.__cause__


def _explain_validation(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "value"
        message = problem["msg"].removeprefix("Value error, ")
        name = f"TOWERLINE_{field.upper()}" if error.title == "Settings" else f"{error.title}: {field}"
        lines.append(f"{name} = {problem['input']!r}: {message}")
    return "; ".join(lines)


def _interrupt_once() -> None:
    """Let the first Ctrl-C or SIGTERM unwind the job, and ignore further ones while it stops what it started."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        print("\nstopping what was started …", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)


def _leave(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
