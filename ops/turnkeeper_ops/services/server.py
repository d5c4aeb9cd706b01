"""What PostgreSQL and Redis have in common: one server on loopback that comes and goes with its owner."""

from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from turnkeeper_ops.services.ports import free_port
from turnkeeper_ops.services.process import Child, Command, ServiceError

# Generous: a start after a crash replays the log first, and the machine may be busy with other tests.
_START_WITHIN = timedelta(seconds=60)


class Server(ABC):
    """A server of ours; see the package's docstring for the whole surface.

    *data* is its data folder, made at the first start and kept; *logs* holds its log. Without *durable* a
    crash of the machine may cost the data, which suits tests. *held* are descriptors for the guard to keep.
    """

    name: str

    def __init__(
        self, data: Path, *, logs: Path | None = None, durable: bool = True, held: tuple[int, ...] = ()
    ) -> None:
        self.port = free_port()
        self._data = data.absolute()
        self._log = (logs or self._data.parent / "logs") / f"{self.name}.log"
        self._durable = durable
        self._held = held
        self._child: Child | None = None

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server answers a real request now."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make whatever must exist before the server starts."""

    @abstractmethod
    def _command(self) -> Command:
        """Return how to run the server in the foreground."""

    @property
    def child(self) -> Child:
        """The running server as a process; raises ServiceError when there is none."""
        if self._child is None:
            raise ServiceError(f"{self.name} is not running")
        return self._child

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self.child.pid

    def start(self) -> None:
        """Start the server and return when it is ready; raise ServiceError with the end of its log."""
        self._prepare()
        self._child = Child.start(self._command())
        try:
            self._child.wait_for(self.ready, within=_START_WITHIN)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down and return when it is gone."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def kill(self) -> None:
        """End the server as a crash would."""
        self.child.kill()
        self._child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
