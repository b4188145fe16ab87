"""Where the endpoint listens, and what is said when it cannot."""

import os
import socket
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.profile import base_url, http_options, require_free_port


def test_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert http_options(settings)["host"] == "127.0.0.1"
    assert base_url(settings) == "http://127.0.0.1:8000"


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:9"), ("::1", "http://[::1]:9")])
def test_the_url_is_one_that_can_be_asked(tmp_path: Path, host: str, url: str) -> None:
    assert base_url(Settings(home=tmp_path, serve_host=host, serve_port=9)) == url


def test_a_port_in_use_is_named_with_the_setting(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        settings = Settings(home=tmp_path, serve_port=port)
        with pytest.raises(TowerlineError, match=rf"127\.0\.0\.1:{port}: Address already in use.*TOWERLINE_SERVE_PORT"):
            require_free_port(settings)
    require_free_port(settings)


def test_a_foreign_haproxy_is_named_though_it_shares_its_port(tmp_path: Path) -> None:
    """One that an earlier Ray Serve left behind would answer half of the requests, with errors."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(TowerlineError, match=rf"already in use \(python.*, process {os.getpid()}\); stop"):
            require_free_port(Settings(home=tmp_path, serve_port=port))


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"192\.0\.2\.1.*TOWERLINE_SERVE_HOST"):
        require_free_port(Settings(home=tmp_path, serve_host="192.0.2.1"))
