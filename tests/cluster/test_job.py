"""How a job ends, seen from outside: the status, and what a person reads on standard error."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.job import explain

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import errno, sqlite3, sys, time
from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.settings import Settings
"""
CLEANS_UP = """
def main(arguments):
    try:
        print("at work", flush=True)
        time.sleep(600)
    finally:
        time.sleep(1)
        print("cleaned up")

run_job(main)
"""


def _run(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f"{PRELUDE}\ndef main(arguments):\n    {body}\n\nrun_job(main)"
    command = [sys.executable, "-c", script, "--dataset", "x"]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": "", **environment}, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_job_gets_its_arguments_and_ends_with_zero() -> None:
    done = _run("print(arguments)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "['--dataset', 'x']\n", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise TowerlineError('data set x is not there; ingest it')", "error: data set x is not there; ingest it\n"),
        ("raise OSError(errno.ENOSPC, 'No space left', '/d/f')", "error: no space left on the disk (/d/f); free some"),
        ("raise sqlite3.OperationalError('database or disk is full')", "error: no space left on the disk; free some"),
        ("open('/dev/full', 'w').write('x' * 10**6)", "error: no space left on the disk; free some"),
        ("Settings(home='here')", "error: TOWERLINE_HOME = 'here': TOWERLINE_HOME is 'here', a relative path"),
        ("Settings(serve_port=0)", "error: TOWERLINE_SERVE_PORT = 0: Input should be greater than 0"),
    ],
)
def test_what_a_person_can_act_on_is_one_line(body: str, message: str) -> None:
    done = _run(body)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_an_error_is_told_by_what_it_was_raised_from() -> None:
    done = _run("raise RuntimeError('worker failed') from TowerlineError('item_id is missing; map it')")
    assert (done.returncode, done.stderr) == (2, "error: item_id is missing; map it\n")


def test_a_defect_keeps_its_traceback() -> None:
    done = _run("{}['x']")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'x'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_cleans_up_and_says_how_to_go_on(number: signal.Signals) -> None:
    script = PRELUDE + CLEANS_UP
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert output == "cleaned up\n", "a second Ctrl-C does not cut the clean-up short"
    assert "interrupted; run the same command again to go on" in errors
    assert "Traceback" not in errors


def test_errors_that_are_each_others_cause_end_as_a_defect() -> None:
    """As Ray's errors of several workers are."""
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert explain(one) is None
