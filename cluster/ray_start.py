"""What every Ray that is started here has in common: loopback, a short folder, a modest object store."""

import os
import tempfile
from pathlib import Path

from ray._private import ray_constants

OBJECT_STORE_BYTES = 512 * 2**20
LONGEST_TEMP_DIR = 40
"""Characters: a socket's path may have 107, and Ray appends about 65."""


def stay_on_loopback() -> None:
    """Keep Ray from turning 127.0.0.1 into this machine's outer address, where every process would then listen.

    Ray does so unless it runs on a system that it takes for single-node; the switch is read when `ray` is imported.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def short_temp_dir() -> Path:
    """A new folder for Ray's sockets, in the system's temporary folder unless its path is too long for them."""
    folder = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="tl-", dir=folder if len(folder) < LONGEST_TEMP_DIR - 12 else "/tmp"))
