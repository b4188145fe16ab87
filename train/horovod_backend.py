"""Horovod on Ray Train V2, which has no Horovod of its own any more.

Ray starts, watches, kills and restarts the workers; this backend tells them where they are in Horovod's world
(`HOROVOD_*` in their environment) and keeps the rendezvous server through which they find each other. The training
function then makes a `train.communicator.HorovodCommunicator`. Nothing here uses `horovod.ray` or elastic Horovod:
after a failure Train starts a new group of workers and `on_start` is called again.
"""

import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.exceptions
import ray.util
from ray.train.backend import Backend, BackendConfig

from cluster.errors import TowerlineError
from train.horovod_options import HorovodOptions
from train.rendezvous import Rendezvous, assign_slots, find_interface, slot_environment

if TYPE_CHECKING:
    from ray.train._internal.base_worker_group import BaseWorkerGroup
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

logger = logging.getLogger(__name__)


@dataclass
class HorovodConfig(BackendConfig):
    """How Horovod's ranks find and talk to each other."""

    timeout_s: int = 60
    """Seconds for the ranks to meet, and for one exchange between them: a rank that neither answers nor closes its
    connection (a lost node) is noticed after this long. A rank whose process ends is noticed at once."""

    stall_timeout_s: int = 600
    """Seconds that ranks wait for one that lives but does not come to the same exchange, before all of them fail.
    Validation runs on rank 0 while the others wait: it must take less than this."""

    interface: str | None = None
    """Network interface of the workers, e.g. `eth0`; none: the one that holds the node's Ray address."""

    shutdown_timeout_s: float = 5.0
    """Seconds for the workers to leave Horovod at the end, before Ray kills them."""

    options: HorovodOptions = field(default_factory=HorovodOptions)
    """How gradients travel."""

    stays: bool = False
    """Whether the workers stay together for another training, as far as this one comes to its end: in one process,
    Horovod can be begun only once with `options` (the second time it writes where there is nothing)."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Which backend Train makes for this configuration."""
        return HorovodBackend

    def to_dict(self) -> dict[str, Any]:
        """For Train's state export."""
        return asdict(self) | {"options": self.options.model_dump()}


class HorovodBackend(Backend):
    """Called by Train's controller (see `train.ray_controller`); one object for all trainings of a process, in turn.

    What a worker group's start, its end or an interrupt leave open is closed before the next one starts.
    """

    share_cuda_visible_devices = True

    def __init__(self) -> None:
        self._rendezvous: Rendezvous | None = None

    def on_start(self, worker_group: "BaseWorkerGroup", backend_config: BackendConfig) -> None:
        """Start the rendezvous and tell every worker its place.

        Raises:
            TowerlineError: Horovod is missing, an interface is not there, or Train's ranks are not grouped by node.
        """
        assert isinstance(backend_config, HorovodConfig)
        self._close_rendezvous()  # of a group whose start or shutdown failed
        workers = cast("WorkerGroup", worker_group).get_workers()
        plan = assign_slots([worker.metadata.node_id for worker in workers])
        self._rendezvous = Rendezvous(_node_address(), plan)
        try:
            pending: list[Any] = []
            for worker, slot in zip(workers, plan, strict=True):
                environment = slot_environment(
                    slot,
                    self._rendezvous.address,
                    self._rendezvous.port,
                    timeout_s=backend_config.timeout_s,
                    stall_timeout_s=backend_config.stall_timeout_s,
                )
                environment |= backend_config.options.environment()
                pending.append(worker.execute_async(_enter_slot, environment, backend_config.interface))
            ray.get(pending)
        except BaseException as error:
            self._close_rendezvous()
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, TowerlineError):
                raise error.cause from error
            raise

    def on_shutdown(self, worker_group: "BaseWorkerGroup", backend_config: BackendConfig) -> None:
        """Let the workers leave Horovod, for a little while, unless they stay, and close the rendezvous.

        What goes wrong with the workers here is logged, not raised: a peer may be dead or wait in an exchange for
        ever, Ray kills them all right after, and an error here would make the whole run fail without a retry.
        """
        assert isinstance(backend_config, HorovodConfig)
        try:
            pending: list[Any] = [] if backend_config.stays else worker_group.execute_async(_leave_horovod)
            ray.get(pending, timeout=backend_config.shutdown_timeout_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.info("Horovod's workers did not leave in order (%s); Ray ends them", type(error).__name__)
        finally:
            self._close_rendezvous()

    def _close_rendezvous(self) -> None:
        if self._rendezvous is not None:
            rendezvous, self._rendezvous = self._rendezvous, None
            rendezvous.close()


def _enter_slot(environment: dict[str, str], interface: str | None) -> None:
    """In a worker: take a place. An earlier place in the same process is forgotten."""
    for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
        del os.environ[name]
    found = find_interface(_node_address(), interface)
    os.environ.update({"HOROVOD_GLOO_IFACE": found, "NCCL_SOCKET_IFNAME": found} | environment)


def _leave_horovod() -> None:
    """In a worker: stop Horovod if the training function has begun it."""
    if "horovod.torch" in sys.modules:
        sys.modules["horovod.torch"].shutdown()


def _node_address() -> str:
    """The address by which Ray knows this node."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
