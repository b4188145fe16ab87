"""The `serve.yaml` that `serve deploy` and KubeRay take, made from the very arguments that `make serve` runs by."""

from pathlib import Path
from typing import Any

import yaml

from cluster.environment import FAST_SERVE
from cluster.files import write_atomically
from cluster.settings import Settings
from serve.app import NAME
from serve.config import AppConfig
from serve.profile import grpc_options, http_options, logging_config

HEAD = """\
# Made by `python -m jobs.serve_models --dataset {dataset} --write {name}`: change what that reads, not this file.
# The replicas need the code, and what TOWERLINE_HOME and the addresses below name, on every node.
"""
BY_THE_MACHINE = {
    "ray_address",
    "num_cpus",
    "cluster_port",
    "dashboard_port",
    "serve_host",
    "serve_port",
    "serve_grpc_port",
}
"""Settings that say where a command runs, or are in the file by another name."""


def deploy_config(settings: Settings, config: AppConfig) -> dict[str, Any]:
    """What Ray Serve is to run, as the document of its REST API.

    Raises:
        pydantic.ValidationError: Ray's own schema refuses it.
    """
    from ray.serve.schema import ServeDeploySchema

    document = {
        "proxy_location": "EveryNode",
        "http_options": http_options(settings),
        **({"grpc_options": options} if (options := grpc_options(settings)) else {}),
        "logging_config": logging_config(),
        "controller_options": {"runtime_env": {"env_vars": FAST_SERVE}},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "runtime_env": {"env_vars": _environment(settings)},
                "args": config.model_dump(mode="json", exclude_none=True),
            }
        ],
    }
    ServeDeploySchema.model_validate(document)
    return document


def write_deploy_file(path: Path, settings: Settings, config: AppConfig) -> None:
    """Write it, whole or not at all. Raises as `deploy_config`."""
    text = yaml.safe_dump(deploy_config(settings, config), sort_keys=False, allow_unicode=True)
    write_atomically(path, HEAD.format(dataset=config.dataset, name=path.name) + text)


def _environment(settings: Settings) -> dict[str, str]:
    """The fast profile, and the settings that are not the defaults, as the replicas read them."""
    values = settings.model_dump(mode="json", exclude=BY_THE_MACHINE, exclude_defaults=True)
    return FAST_SERVE | {f"TOWERLINE_{name.upper()}": str(value) for name, value in values.items()}
