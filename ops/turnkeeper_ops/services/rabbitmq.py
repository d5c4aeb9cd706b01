"""RabbitMQ: the machine's own, run privately, for brokers that are not Redis."""

import os
import secrets
import shutil
from pathlib import Path

from kombu.connection import Connection
from kombu.exceptions import OperationalError

from turnkeeper_ops.services.ports import LOOPBACK, free_port
from turnkeeper_ops.services.process import Child, Command, ServiceError
from turnkeeper_ops.services.server import Server

_PROGRAM = "rabbitmq-server"
_PACKAGED = Path("/usr/lib/rabbitmq/bin") / _PROGRAM
"""Debian's program on PATH is a wrapper that changes the user; this is what it wraps."""
_USER = "turnkeeper"

_CONFIGURATION = """\
listeners.tcp.1 = {host}:{port}
default_user = {user}
default_pass = {password}
log.console = true
log.console.level = warning
log.file = false
# A test machine may have less to spare than RabbitMQ would like to see, and then it takes no messages.
disk_free_limit.absolute = 1MB
"""


class RabbitMQ(Server):
    """One RabbitMQ node on loopback, with a name, a port and a cookie of its own."""

    name = "rabbitmq"

    def __init__(
        self, data: Path, *, logs: Path | None = None, durable: bool = True, held: tuple[int, ...] = ()
    ) -> None:
        super().__init__(data, logs=logs, durable=durable, held=held)
        self._names_port = free_port()
        self._names: Child | None = None
        self._distribution_port = free_port()
        self._password = secrets.token_urlsafe(24)

    def url(self) -> str:
        """Return the address of the only virtual host."""
        return f"amqp://{_USER}:{self._password}@{LOOPBACK}:{self.port}//"

    def start(self) -> None:
        """Start the server, and before it Erlang's registry of nodes, which would outlive us as a daemon."""
        self._names = Child.start(
            Command(
                name="epmd",
                argv=(str(_find("epmd")), "-port", str(self._names_port)),
                log=self._log,
                environment={"ERL_EPMD_ADDRESS": LOOPBACK},
                held=self._held,
            )
        )
        super().start()

    def stop(self) -> None:
        """Shut the server down and return when it is gone."""
        super().stop()
        self._forget_names()

    def kill(self) -> None:
        """End the server as a crash would."""
        super().kill()
        self._forget_names()

    def _forget_names(self) -> None:
        if self._names is not None:
            self._names.stop()
            self._names = None

    def ready(self) -> bool:
        """Whether the server lets us in."""
        try:
            with Connection(self.url(), connect_timeout=2) as connection:
                connection.connect()
        except (OperationalError, OSError):
            return False
        return True

    def _prepare(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        self._configuration.touch(mode=0o600)
        text = _CONFIGURATION.format(host=LOOPBACK, port=self.port, user=_USER, password=self._password)
        self._configuration.write_text(text, encoding="utf-8")

    @property
    def _configuration(self) -> Path:
        return self._data / "rabbitmq.conf"

    def _command(self) -> Command:
        return Command(
            name=self.name,
            argv=(str(find_server()),),
            log=self._log,
            environment=self._environment(),
            held=self._held,
        )

    def _environment(self) -> dict[str, str]:
        return {
            # Erlang keeps its cookie, which is a password, in the home folder.
            "HOME": str(self._data),
            "RABBITMQ_NODENAME": f"turnkeeper-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONFIG_FILE": str(self._configuration),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_MNESIA_BASE": str(self._data),
            "RABBITMQ_LOG_BASE": str(self._data),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._data / "enabled_plugins"),
            "ERL_EPMD_PORT": str(self._names_port),
            # The way into the node stays on loopback, as the registry does.
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }


def find_server() -> Path:
    """Return the server program; raise ServiceError saying what to install."""
    return _PACKAGED if _PACKAGED.exists() else _find(_PROGRAM)


def _find(program: str) -> Path:
    found = shutil.which(program)
    if found is None:
        raise ServiceError(f"no RabbitMQ: {program} is not on PATH; install rabbitmq-server 3.10 or newer")
    return Path(found)
