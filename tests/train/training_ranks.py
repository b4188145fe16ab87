"""A rank that trains in a folder: `python -m tests.train.training_ranks KIND FOLDER EPOCHS CONFIG`."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.train.toy_task import ToyConfig, ToyTask
from train.communicator import Communicator, HorovodCommunicator, TorchDistributedCommunicator, end_rank
from train.loop import FitConfig
from train.rendezvous import Rendezvous, assign_slots, slot_environment
from train.resumable import fit_in_folder


@contextmanager
def ranks(
    kind: str, folder: Path, size: int, config: ToyConfig, epochs: int, *, timeout_s: int = 120
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of a group of `size` ranks that train, or go on training, in `folder`.

    They wait `timeout_s` for each other: to meet, and for one that is silent.
    """
    plan = assign_slots(["node"] * size)
    with Rendezvous("127.0.0.1", plan) as rendezvous:
        processes = []
        for slot in plan:
            environment = slot_environment(slot, "127.0.0.1", rendezvous.port, timeout_s=timeout_s, stall_timeout_s=120)
            environment |= {"HOROVOD_GLOO_IFACE": "lo", "GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(rendezvous.port)}
            command = [sys.executable, "-m", "tests.train.training_ranks", kind, str(folder), str(epochs)]
            processes.append(subprocess.Popen([*command, pickle.dumps(config).hex()], env=os.environ | environment))
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def main(kind: str, folder: Path, epochs: int, config: ToyConfig) -> None:
    """Train to the end."""
    torch.set_num_threads(1)
    communicator: Communicator
    if kind == "horovod":
        communicator = HorovodCommunicator()
    else:
        rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
        meeting = f"file://{folder}/meet-{os.environ['MASTER_PORT']}"
        communicator = TorchDistributedCommunicator.meet(meeting, rank, size, timeout_s=120)
    fit = FitConfig(epochs=epochs, metric="error", mode="min")
    fit_in_folder(ToyTask(config), communicator, fit, folder=folder, checkpoint_s=0)
    communicator.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), pickle.loads(bytes.fromhex(sys.argv[4])))
    end_rank()
