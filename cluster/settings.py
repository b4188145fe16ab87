"""The one place where addresses and folders are configured: `Settings`, read from `TOWERLINE_*`."""

from functools import cached_property
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.environment import in_submitted_job
from cluster.provenance import ROOT


def _default_home() -> Path:
    """`.towerline` in the repository; in a submitted job that would be a temporary folder, so none."""
    return Path() if in_submitted_job() else ROOT / ".towerline"


class Settings(BaseSettings):
    """Where things are. Every field is set by the environment variable `TOWERLINE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="TOWERLINE_", frozen=True, extra="forbid")

    home: Path = Field(default_factory=_default_home, validate_default=True)
    """Folder of everything Towerline writes: data sets, runs, the registry, reports. Absolute: a relative one is
    refused everywhere, so that a command means the same when it is submitted. Has no default in a submitted job."""

    mlflow_tracking_uri: str = ""
    """MLflow tracking and registry address; empty means sqlite in `home`."""

    online_store: str = ""
    """Address of the Redis that holds online features, redis://[:password@]host:port/database (or rediss://, unix://);
    empty means SQLite in `home`, which serves one machine only."""

    ray_address: str = ""
    """Address (host:port) of a running Ray cluster, or `auto` for the one that `make cluster-up` started with this
    `home`; empty means: attach if this is a submitted job or `RAY_ADDRESS` is set, else start one here."""

    num_cpus: int = Field(default=4, gt=0)
    """Logical CPUs of a Ray session started here."""

    cluster_port: int = Field(default=0, ge=0, lt=65536)
    """TCP port on 127.0.0.1 that the cluster of `make cluster-up` is attached to by; 0 takes a free one."""

    dashboard_port: int = Field(default=8265, ge=0, lt=65536)
    """TCP port on 127.0.0.1 of that cluster's dashboard and job server; 0 takes a free one."""

    serve_host: str = "127.0.0.1"
    """Interface the HTTP endpoint listens on."""

    serve_port: int = Field(default=8000, gt=0, lt=65536)
    """TCP port of the HTTP endpoint."""

    serve_grpc_port: int = Field(default=0, ge=0, lt=65536)
    """TCP port of `Recommend` over gRPC (`serve/rpc/recommender.proto`); 0: no gRPC. Ray Serve listens on every
    interface there, whatever `serve_host` says."""

    @field_validator("online_store")
    @classmethod
    def _online_store_must_be_redis(cls, address: str) -> str:
        if address and not address.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(
                f"TOWERLINE_ONLINE_STORE is {address!r}; expected redis://host:port/0, or nothing for SQLite in "
                "TOWERLINE_HOME"
            )
        return address

    @field_validator("home")
    @classmethod
    def _home_must_be_absolute(cls, home: Path) -> Path:
        if home == Path() and in_submitted_job():
            raise ValueError(
                "a submitted job needs TOWERLINE_HOME, an absolute path that every node sees; `make cluster-up` sets "
                "it for its cluster, elsewhere pass it in the job's runtime_env: env_vars"
            )
        if not home.is_absolute():
            raise ValueError(
                f"TOWERLINE_HOME is {str(home)!r}, a relative path; a submitted job runs in an unpacked copy of the "
                f"repository where that is a temporary folder. Set an absolute path, e.g. {Path.cwd() / home}"
            )
        return home

    @cached_property
    def tracking_uri(self) -> str:
        """MLflow address in effect."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home}/mlflow.db"
