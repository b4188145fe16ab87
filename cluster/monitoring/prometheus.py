"""The Prometheus configuration for a cluster of this machine."""

from pathlib import Path

from cluster.files import write_atomically
from cluster.settings import Settings

TEMPLATE = Path(__file__).with_name("prometheus.yml")
DEFAULT_TEMP_DIR = "/tmp/ray/"
"""Ray's, unless it is told another one."""


def prometheus_config(settings: Settings) -> Path:
    """Where the configuration for the cluster of this home is."""
    return settings.home / TEMPLATE.name


def write_prometheus_config(settings: Settings, temp_dir: Path) -> None:
    """Write it, for the cluster whose folder is `temp_dir`."""
    write_atomically(prometheus_config(settings), TEMPLATE.read_text().replace(DEFAULT_TEMP_DIR, f"{temp_dir}/"))
