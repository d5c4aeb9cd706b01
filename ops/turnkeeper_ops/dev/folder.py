"""The folder `.turnkeeper/`: the data, the logs and the addresses of a stack, and the lock that makes it one.

`dev.lock` is locked by the stack and by the guard of each of its processes. So it says the truth after a
crash too: it is free when the last of them has gone.
"""

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

from turnkeeper_ops.services.process import ServiceError, poll

_NAME = ".turnkeeper"
_LOCK = "dev.lock"
_ENVIRONMENT = "dev.env"
_EXPORT = "export "

# A worker whose owner was killed may still drain: its grace, and some seconds for the others.
_CLEARED_WITHIN = timedelta(seconds=45)


class AlreadyRunning(ServiceError):
    """Another stack holds the folder."""

    def __init__(self, folder: Path, pid: int) -> None:
        super().__init__(folder, pid)
        self.folder = folder
        self.pid = pid

    def __str__(self) -> str:
        return f"`turnkeeper dev` runs in {self.folder} already (pid {self.pid}): use it, or stop it first"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The paths of a stack that holds its folder, and the lock's descriptor."""

    path: Path
    lock: int

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.path / "logs"

    @property
    def environment(self) -> Path:
        """The addresses, as a file for the shell; it exists only while they are good."""
        return self.path / _ENVIRONMENT

    def publish(self, environment: Mapping[str, str]) -> None:
        """Write the addresses so that nobody ever reads half of them, and nobody else reads them at all."""
        unfinished = self.environment.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        lines = [f"{_EXPORT}{name}={shlex.quote(value)}\n" for name, value in environment.items()]
        unfinished.write_text("".join(lines), encoding="utf-8")
        unfinished.replace(self.environment)

    def withdraw(self) -> None:
        """Remove the addresses."""
        self.environment.unlink(missing_ok=True)


@contextmanager
def occupy(folder: Path) -> Iterator[StateFolder]:
    """Hold the folder's stack for ourselves, and remove what a crash left; raises AlreadyRunning."""
    path = folder.absolute() / _NAME
    path.mkdir(mode=0o700, exist_ok=True)
    with (path / _LOCK).open("a+", encoding="ascii") as lock:
        _acquire(lock, folder)
        _write_pid(lock)
        state = StateFolder(path, lock.fileno())
        state.withdraw()
        try:
            yield state
        finally:
            state.withdraw()


def environment_of(folder: Path) -> dict[str, str]:
    """Return the variables that a running stack in *folder* has published; none where nothing runs."""
    path = folder / _NAME
    try:
        with (path / _LOCK).open(encoding="ascii") as lock:
            if _lock(lock, fcntl.LOCK_SH):
                return {}
        lines = (path / _ENVIRONMENT).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (shlex.split(line.removeprefix(_EXPORT))[0].partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def _acquire(lock: IO[str], folder: Path) -> None:
    """Lock, or wait for the guards of a stack that was killed, or say who holds it."""

    def attempt() -> bool:
        if _lock(lock, fcntl.LOCK_EX):
            return True
        if _is_alive(owner := _read_pid(lock)):
            raise AlreadyRunning(folder.absolute(), owner)
        return False

    if not poll(attempt, within=_CLEARED_WITHIN):
        seconds = _CLEARED_WITHIN.total_seconds()
        raise ServiceError(f"the processes of an earlier stack in {folder} did not end within {seconds:g} s")


def _lock(lock: IO[str], how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_pid(lock: IO[str]) -> None:
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _read_pid(lock: IO[str]) -> int:
    """Return who wrote the lock; 0 in the moment before it is written."""
    lock.seek(0)
    with contextlib.suppress(ValueError):
        return int(lock.read())
    return 0


def _is_alive(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
