"""How Ray Serve is started: address, time limits, and a look at the port before anything is."""

import socket
from contextlib import suppress
from typing import Any

import psutil

from cluster.errors import TowerlineError
from cluster.settings import Settings

SERVE_TIMEOUT_S = 60.0
"""Ray Serve's own limit for a request; the endpoint's is shorter, and answers with a problem."""


def http_options(settings: Settings) -> dict[str, Any]:
    """Ray Serve's HTTP options: one proxy on the head node, on the interface that the settings name."""
    return {"host": settings.serve_host, "port": settings.serve_port, "request_timeout_s": SERVE_TIMEOUT_S}


def grpc_options(settings: Settings) -> dict[str, Any] | None:
    """Ray Serve's gRPC options, with reflection, if there is to be gRPC."""
    if not settings.serve_grpc_port:
        return None
    return {
        "port": settings.serve_grpc_port,
        "grpc_servicer_functions": ["serve.rpc.recommender_pb2_grpc.add_RecommenderServicer_to_server"],
        "request_timeout_s": SERVE_TIMEOUT_S,
        "enable_reflection": True,
    }


def logging_config() -> dict[str, Any]:
    """Ray Serve's own logging: warnings only, no access log."""
    return {"log_level": "WARNING", "enable_access_log": False}


def base_url(settings: Settings) -> str:
    """Where the endpoint is reached from this machine."""
    host = settings.serve_host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve_port}"


def require_free_port(settings: Settings) -> None:
    """Raises `TowerlineError` if the endpoint could not listen where it is told to."""
    host, port, grpc_port = settings.serve_host, settings.serve_port, settings.serve_grpc_port
    names = f"TOWERLINE_SERVE_PORT (now {port}) or TOWERLINE_SERVE_HOST (now {host})"
    _require_free(host, port, f"{names} to another address")
    if grpc_port:
        _require_free("0.0.0.0", grpc_port, f"TOWERLINE_SERVE_GRPC_PORT (now {grpc_port}) to another port, or to 0")


def _require_free(host: str, port: int, otherwise: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            reason = f"{error.strerror or error}{_listeners(port)}"
            raise TowerlineError(
                f"cannot listen on {host}:{port}: {reason}; stop what listens there, or set {otherwise}"
            ) from error


def _listeners(port: int) -> str:
    """Which processes listen on a port, in brackets, as far as this user may know."""
    found = set[str]()
    with suppress(psutil.AccessDenied):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid is not None:
                with suppress(psutil.NoSuchProcess):
                    found.add(f"{psutil.Process(each.pid).name()}, process {each.pid}")
    return f" ({'; '.join(sorted(found))})" if found else ""
