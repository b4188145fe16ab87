"""How Horovod's ranks find each other, without Ray: their places, the server where they meet, the interface to use."""

import http.client
import os
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psutil

from cluster.errors import TowerlineError

if TYPE_CHECKING:
    from horovod.runner.common.util.hosts import SlotInfo

POLL_S = 0.05
"""Seconds between two looks at who is there."""


class Rendezvous:
    """The small HTTP server where ranks leave their addresses for each other."""

    def __init__(self, address: str, plan: list["SlotInfo"]) -> None:
        """Listen on `address`, on a free port, for the ranks of `plan`."""
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

        self._server: Any = RendezvousHTTPServer((address, 0), RendezvousHandler, verbose=0)
        self._server.daemon_threads = True
        self._server.init(plan)
        self.address = address
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": POLL_S}, name="horovod-rendezvous", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and give the port back."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def assign_slots(node_ids: list[str]) -> list["SlotInfo"]:
    """Horovod's rank, local rank and cross rank of every worker, given the node of each, in the order of the ranks.

    Nodes are told apart by id and not by address, since several nodes of a test cluster share one address. The cross
    size is counted per local rank, so nodes may have different numbers of workers.

    Raises:
        TowerlineError: Horovod is missing, or the workers of a node do not have consecutive ranks.
    """
    try:
        from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    except ImportError as error:
        raise horovod_missing(error) from error
    slots_per_node = Counter(node_ids)
    plan: list[SlotInfo] = get_host_assignments(
        [HostInfo(node_id, slots) for node_id, slots in slots_per_node.items()], len(node_ids)
    )
    if [slot.hostname for slot in plan] != node_ids:
        raise TowerlineError(
            f"Horovod wants the workers of a node to have consecutive ranks, but the nodes by rank are {node_ids}; "
            "train with backend 'torch'"
        )
    return plan


def slot_environment(
    slot: "SlotInfo", address: str, port: int, timeout_s: int = 60, stall_timeout_s: int = 600
) -> dict[str, str]:
    """The variables that tell one rank where it is and how to meet the others at `address`:`port`.

    `timeout_s` is for meeting and for one exchange, `stall_timeout_s` for a rank that lives but does not come.
    """
    return {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(timeout_s),
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(stall_timeout_s),
        # Horovod warns before it ends a stall, by default after 60 s, which a validation may take.
        "HOROVOD_STALL_CHECK_TIME_SECONDS": str(max(1, stall_timeout_s // 2)),
        "HOROVOD_HOSTNAME": slot.hostname,
        "HOROVOD_RANK": str(slot.rank),
        "HOROVOD_SIZE": str(slot.size),
        "HOROVOD_LOCAL_RANK": str(slot.local_rank),
        "HOROVOD_LOCAL_SIZE": str(slot.local_size),
        "HOROVOD_CROSS_RANK": str(slot.cross_rank),
        "HOROVOD_CROSS_SIZE": str(slot.cross_size),
    }


def initialized_horovod() -> Any:
    """`horovod.torch` after `init()`, in a process with the variables of `slot_environment`; not again if it was.

    Raises:
        TowerlineError: Horovod is missing or lacks Gloo, or the other ranks did not come in time.
    """
    try:
        import horovod.torch
    except ImportError as error:
        raise horovod_missing(error) from error
    if horovod.torch.is_initialized():
        return horovod.torch
    if not horovod.torch.gloo_built():
        raise TowerlineError("Horovod was built without Gloo; run `make install`, which builds it with Gloo")
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in os.environ:
        raise TowerlineError(
            "HOROVOD_GLOO_RENDEZVOUS_ADDR is not set: this process was not told its place among Horovod's ranks; "
            "start it by train.trainer.train_distributed, or set the variables of train.rendezvous.slot_environment"
        )
    wait_for_all_ranks()
    horovod.torch.init()
    return horovod.torch


def wait_for_all_ranks() -> None:
    """Return when every rank is at the rendezvous.

    Horovod's own wait ends the process without a word of ours when a rank stays away; this one raises.

    Raises:
        TowerlineError: the server or a rank was not there within HOROVOD_GLOO_TIMEOUT_SECONDS.
    """
    address, port = os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
    rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
    timeout_s = int(os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"])
    deadline = time.monotonic() + timeout_s
    announced, missing, failure = False, list(range(size)), ""
    while missing:
        try:
            announced = announced or _ask(address, port, "PUT", rank)
            missing = [other for other in missing if not _ask(address, port, "GET", other)]
        except OSError as error:
            failure = f" ({error})"
        if missing and time.monotonic() > deadline:
            who = f"ranks {missing}" if announced else "the server"
            raise TowerlineError(
                f"Horovod rank {rank} of {size} waited {timeout_s} s at {address}:{port} for {who}{failure}; "
                f"check that {address} can be reached from every node, and give slow nodes more time by "
                "HorovodConfig.timeout_s (HOROVOD_GLOO_TIMEOUT_SECONDS)"
            )
        if missing:
            time.sleep(POLL_S)


def find_interface(address: str, wanted: str | None = None) -> str:
    """The name of the network interface that holds `address`, or `wanted` if this machine has it.

    Raises:
        TowerlineError: there is no such interface; names those that there are.
    """
    interfaces = {
        name: [entry.address for entry in entries if entry.family in {socket.AF_INET, socket.AF_INET6}]
        for name, entries in psutil.net_if_addrs().items()
    }
    known = ", ".join(f"{name} ({' '.join(addresses)})" for name, addresses in sorted(interfaces.items()) if addresses)
    if wanted is not None:
        if wanted in interfaces:
            return wanted
        raise TowerlineError(
            f"HorovodConfig.interface is {wanted!r}, which {socket.gethostname()} does not have; choose one of {known}"
        )
    for name, addresses in interfaces.items():
        if address in addresses:
            return str(name)
    raise TowerlineError(
        f"no network interface of {socket.gethostname()} holds its Ray address {address}; "
        f"set HorovodConfig.interface to one of {known}"
    )


def horovod_missing(error: ImportError) -> TowerlineError:
    """What to do when Horovod is not installed, or was built for another torch."""
    return TowerlineError(
        f"Horovod cannot be imported ({error}); run `make install`, which builds it, or train with backend 'torch'"
    )


def _ask(address: str, port: int, method: str, rank: int) -> bool:
    """Put `rank`'s name on the server's list, or ask whether it is there."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request(method, f"/towerline/{rank}", body=b"here" if method == "PUT" else None)
        return connection.getresponse().status == http.HTTPStatus.OK
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
