"""Which workers stay for the next training; that trainings go on with them is in test_trainer.py."""

import pytest

from train.crew import Crew, crew_for, dismiss, same_workers
from train.scaling import Scaling


@pytest.fixture
def ended() -> list[str]:
    """Who was ended."""
    return []


def trained(ended: list[str]) -> Crew:
    """Whom a training with default scaling left."""
    crew = crew_for(Scaling())
    assert crew is not None
    crew.stay(["worker"], "places", lambda: ended.append("worker"))
    return crew


def test_workers_stay_for_a_training_that_asks_for_the_same(ended: list[str]) -> None:
    with same_workers():
        crew = trained(ended)
        assert crew_for(Scaling(max_failures=7, checkpoint_s=1)) is crew
        assert crew.workers == ["worker"]
        assert not ended
    assert ended == ["worker"]


@pytest.mark.parametrize(
    "other", [Scaling(num_workers=3), Scaling(cpus_per_worker=2), Scaling(backend="torch"), Scaling(num_workers=(1, 2))]
)
def test_a_training_that_asks_for_others_ends_them(ended: list[str], other: Scaling) -> None:
    with same_workers():
        crew = trained(ended)
        assert crew_for(other) is (None if other.elastic else crew)
        assert not crew.workers
        assert ended == ["worker"]


def test_they_are_ended_once_when_their_cpus_are_needed(ended: list[str]) -> None:
    with same_workers():
        trained(ended)
        dismiss()
        assert ended == ["worker"]
    assert ended == ["worker"]


def test_whom_a_training_has_is_its_own(ended: list[str]) -> None:
    with same_workers():
        trained(ended).leave()
    assert not ended


def test_they_are_ended_when_the_block_fails(ended: list[str]) -> None:
    @same_workers()
    def fail() -> None:
        trained(ended)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert ended == ["worker"]


def test_nobody_stays_without_being_asked() -> None:
    assert crew_for(Scaling()) is None
    dismiss()
