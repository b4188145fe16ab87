import os
import signal
import time
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from data.parallel import in_process, on_ray


def square(number: int) -> int:
    return number * number


class Meets:
    """Waits until a second process is at it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> tuple[int, bool]:
        (self.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 300
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return number, len(list(self.folder.iterdir())) >= 2


def refuse(number: int) -> int:
    if number == 3:
        raise TowerlineError("three is too much")
    if number == 4:
        raise OSError(28, "No space left on device")
    return number


class DiesOnce:
    """Kills its worker the first time it sees a task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> int:
        try:
            (self.folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.usefixtures("ray_session")
def test_both_ways_map() -> None:
    assert sorted(on_ray(square, range(6))) == sorted(in_process(square, range(6))) == [0, 1, 4, 9, 16, 25]
    assert list(on_ray(square, [])) == list(in_process(square, [])) == []


@pytest.mark.usefixtures("ray_session")
def test_many_tasks_go_to_several_workers_some_at_a_time(tmp_path: Path) -> None:
    assert sorted(on_ray(Meets(tmp_path), range(150))) == [(number, True) for number in range(150)]


@pytest.mark.usefixtures("ray_session")
def test_an_error_that_a_person_can_act_on_comes_back_as_it_was() -> None:
    for run in (on_ray, in_process):
        with pytest.raises(TowerlineError, match=r"^three is too much$"):
            list(run(refuse, [1, 2, 3]))
        with pytest.raises(TowerlineError, match=r"^three is too much$"):
            list(run(refuse, [*range(4), *range(5, 150)]))
        with pytest.raises(OSError, match="No space left") as error:
            list(run(refuse, [1, 2, 4]))
        assert error.value.errno == 28


@pytest.mark.usefixtures("ray_session")
def test_a_task_whose_worker_dies_is_run_again(tmp_path: Path) -> None:
    assert sorted(on_ray(DiesOnce(tmp_path), range(3))) == [0, 1, 2]
