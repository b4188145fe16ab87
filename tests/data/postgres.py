"""A real PostgreSQL for the tests, from Debian's binaries, in a folder of its own and never as root."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.data.servers import Server

USER = "postgres"


class PostgresServer(Server):
    """Listens on a free port of 127.0.0.1. It can be killed and started again with what was committed."""

    @property
    def url(self) -> str:
        """Address of its database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    @property
    def command(self) -> list[str]:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.folder), "fsync": "off"}
        flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [*_not_as_root(), _binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *flags]

    def start(self) -> None:
        if not (self.folder / "data").exists():
            if _not_as_root():
                shutil.chown(self.folder, USER, USER)
            setup = [_binary("initdb"), "-D", str(self.folder / "data"), "-U", USER, "-A", "trust", "--no-sync"]
            subprocess.run([*_not_as_root(), *setup], check=True, capture_output=True, cwd=self.folder)
        super().start()

    def kill(self) -> None:
        """End it at once, and wait until its children, which hold its memory, have noticed."""
        children = [] if self._process is None else psutil.Process(self._process.pid).children(recursive=True)
        super().kill()
        psutil.wait_procs(children, timeout=10)

    def is_ready(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def execute(self, statement: str) -> None:
        """Run a statement and commit it."""
        engine = sa.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text(statement))


def _binary(name: str) -> str:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert folders, "PostgreSQL is not installed; run `make install-servers`"
    return str(folders[-1] / name)


def _not_as_root() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"] if os.geteuid() == 0 else []
