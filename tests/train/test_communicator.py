"""Without Ray: ranks are plain processes. (The same proof through Ray's backends is in test_trainer.py.)"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import TowerlineError
from tests.train import communicator_ranks
from tests.train.table_task import PASSES, by_hand
from train.communicator import SingleProcess, TorchDistributedCommunicator
from train.rendezvous import Rendezvous, assign_slots, slot_environment

PATIENCE_S = 120
"""What the ranks have to meet, and for one that is late, on a machine that does much else."""


def _run_ranks(
    kind: str,
    folder: Path,
    *works: str,
    absent: int | None = None,
    timeout_s: int = PATIENCE_S,
    stall_timeout_s: int = PATIENCE_S,
) -> None:
    """Two ranks of `kind` do `works` in turn, or one if the other is `absent`."""
    plan = assign_slots(["node", "node"])
    with Rendezvous("127.0.0.1", plan) as rendezvous:
        ranks = []
        for slot in plan:
            if slot.rank == absent:
                continue
            environment = slot_environment(
                slot, "127.0.0.1", rendezvous.port, timeout_s=timeout_s, stall_timeout_s=stall_timeout_s
            )
            command = [sys.executable, "-m", "tests.train.communicator_ranks", kind, str(folder), str(slot.rank)]
            ranks.append(
                subprocess.Popen(
                    [*command, f"file://{folder}/meet", *works],
                    env=os.environ | environment | {"HOROVOD_GLOO_IFACE": "lo", "GLOO_SOCKET_IFNAME": "lo"},
                )
            )
        try:
            assert [process.wait(300) for process in ranks] == [0] * len(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def _loaded(folder: Path, work: str, rank: int) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(folder / f"{work}-{rank}.pt", weights_only=True)
    return result


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return communicator_ranks.train_steps(SingleProcess())


@pytest.fixture(scope="module", params=["horovod", "torch"])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    _run_ranks(request.param, folder, "steps", "state", "accumulate", "sparse", "lazy", "idle", "lost_peer")
    return folder


def test_gradients_and_weights_are_those_of_one_process(together: Path, alone: dict[str, Any]) -> None:
    for rank in (0, 1):
        result = _loaded(together, "steps", rank)
        torch.testing.assert_close(result["gradients"], alone["gradients"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(result["weights"]), dict(alone["weights"]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result["optimizer"], alone["optimizer"], rtol=1e-4, atol=1e-5)


def test_ranks_end_with_the_very_same_weights(together: Path) -> None:
    first, second = (dict(_loaded(together, "steps", rank)["weights"]) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_mean_and_broadcast(together: Path, alone: dict[str, Any]) -> None:
    for rank in (0, 1):
        result = _loaded(together, "steps", rank)
        assert result["mean"].tolist() == [0.5, 10.0]
        assert result["mean"].dtype == torch.float64
        assert result["broadcast"] == {"rank": 0}
    assert (alone["mean"].tolist(), alone["broadcast"]) == ([0.0, 10.0], {"rank": 0})


def test_every_rank_gets_the_optimizer_state_of_rank_0(together: Path) -> None:
    first, second = (_loaded(together, "state", rank) for rank in (0, 1))
    assert any(name.endswith("exp_avg_sq") for name in first)
    assert first["learning rate"] == 0.25
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_mean_gradient_of_several_batches_is_that_of_one_process(together: Path) -> None:
    for rank in (0, 1):
        torch.testing.assert_close(_loaded(together, "accumulate", rank), by_hand(PASSES), rtol=1e-4, atol=1e-5)


def test_sparse_gradients_are_those_of_one_process(together: Path) -> None:
    for rank in (0, 1):
        result = _loaded(together, "sparse", rank)
        for passes in (1, PASSES):
            torch.testing.assert_close(result[str(passes)], by_hand(passes), rtol=1e-4, atol=1e-5)


def test_lazy_steps_on_sparse_gradients_are_those_of_one_process(together: Path) -> None:
    expected = communicator_ranks.lazy(SingleProcess())
    for rank in (0, 1):
        torch.testing.assert_close(_loaded(together, "lazy", rank), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def with_options(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    _run_ranks("horovod with options", folder, "steps", "accumulate", "adasum")
    return folder


def test_compressed_gradients_are_nearly_those_of_one_process(with_options: Path, alone: dict[str, Any]) -> None:
    expected = alone["gradients"]
    for rank in (0, 1):
        gradients = _loaded(with_options, "steps", rank)["gradients"]
        torch.testing.assert_close(gradients, expected, rtol=5e-3, atol=1e-3)
        assert any((gradients[name] - expected[name]).abs().max() > 1e-5 for name in expected)
        torch.testing.assert_close(_loaded(with_options, "accumulate", rank), by_hand(PASSES), rtol=0.05, atol=0.02)


def test_adasum_over_gloo_is_refused(with_options: Path) -> None:
    message = _loaded(with_options, "adasum", 0)["error"]
    assert "scaling.horovod.reduction is 'adasum'" in message
    assert "travel over Gloo; set it to 'mean'" in message


def test_ranks_that_have_nothing_to_exchange_leave_each_other_alone(together: Path) -> None:
    for rank in (0, 1):
        sent = _loaded(together, "idle", rank)
        assert sent["idle"] < sent["exchanges"] / 2


def test_a_dead_peer_is_noticed_in_time(together: Path) -> None:
    noticed = _loaded(together, "lost_peer", 0)
    assert noticed["seconds"] is not None
    assert noticed["seconds"] < PATIENCE_S, "it was not noticed but given up"


def test_a_rank_that_does_not_come_ends_all(tmp_path: Path) -> None:
    _run_ranks("horovod", tmp_path, "stall", stall_timeout_s=5)
    stalled = [_loaded(tmp_path, "stall", rank) for rank in (0, 1)]
    assert stalled[0]["seconds"] >= 5
    assert all("has been shut down" in result["error"] for result in stalled)


@pytest.mark.parametrize("kind", ["horovod", "torch"])
def test_a_rank_that_stays_away_is_named(kind: str, tmp_path: Path) -> None:
    _run_ranks(kind, tmp_path, "steps", absent=1, timeout_s=4)
    message = (tmp_path / "error-0.txt").read_text()
    if kind == "horovod":
        assert "rank 0 of 2 waited 4 s at 127.0.0.1:" in message
        assert "for ranks [1]" in message
        assert "HOROVOD_GLOO_TIMEOUT_SECONDS" in message
    else:
        assert "rank 0 of 2 did not meet the others at file://" in message


def test_torch_without_a_process_group_says_what_to_do() -> None:
    with pytest.raises(TowerlineError, match=r"has no process group; train with backend 'torch'"):
        TorchDistributedCommunicator()
