"""A command that runs under a guard: started, watched and ended as one thing, its output in a log file."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self, TypeVar

_GUARD = (sys.executable, "-P", "-m", "turnkeeper_ops.services.guard")
_LOG_LINES_SHOWN = 12
_POLL_SECONDS = 0.02

T = TypeVar("T")


class ServiceError(Exception):
    """A service cannot start, did not answer in time, or ended while it was needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, and how it wishes to be ended."""

    name: str
    """Stands in messages and names the log."""
    argv: tuple[str, ...]
    log: Path
    """Appended to; its folder is made."""
    cwd: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to our own environment."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace: timedelta = timedelta(seconds=10)
    """How long the stop signal may take; SIGKILL follows."""
    held: tuple[int, ...] = ()
    """File descriptors that the guard keeps open: a lock among them lasts as long as the last guard."""


class Child:
    """A running command and its guard."""

    def __init__(self, command: Command, guard: subprocess.Popen[str], pid: int, log_start: int) -> None:
        self.command = command
        self.pid = pid
        """The process id of the command itself, not of its guard."""
        self._guard = guard
        self._log_start = log_start

    @classmethod
    def start(cls, command: Command) -> Self:
        """Start the command; return as soon as it runs, ready or not."""
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            log_start = log.tell()
            guard = subprocess.Popen(  # noqa: S603 - a list, without a shell
                [*_GUARD, *_guard_options(command), "--", *command.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=command.cwd,
                env={**os.environ, **command.environment},
                pass_fds=command.held,
                start_new_session=True,
            )
        pid = _first_line(guard)
        child = cls(command, guard, int(pid or 0), log_start)
        if not pid:
            child.stop()
            raise child.failure("did not start")
        return child

    def exit_code(self) -> int | None:
        """Return what the command ended with, 128 + N after signal N; None while it runs."""
        return self._guard.poll()

    def wait_for(self, condition: Callable[[], T | None], *, within: timedelta, what: str = "answer") -> T:
        """Return the first true value of *condition*.

        Raise ServiceError when the command ends first, or does not do *what* in time.
        """

        def look() -> T | None:
            if self.exit_code() is not None:
                raise self.unexpected_end()
            return condition()

        value = poll(look, within=within)
        if value is None:
            raise self.failure(f"did not {what} within {within.total_seconds():g} s")
        return value

    def finish(self, *, within: timedelta) -> None:
        """Wait for a command that ends by itself; raise ServiceError when it fails or takes longer."""
        try:
            code = self._guard.wait(within.total_seconds())
        except subprocess.TimeoutExpired:
            self.stop()
            raise self.failure(f"did not finish within {within.total_seconds():g} s") from None
        if code != 0:
            raise self.unexpected_end()
        self.stop()

    def ask_to_stop(self) -> None:
        """Begin to end the command; several may end side by side before `stop` waits for each."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def stop(self) -> None:
        """End the command and return when it is gone; harmless when it has ended already."""
        self.ask_to_stop()
        try:
            self._guard.wait()
        except BaseException:
            # Who presses Ctrl-C a second time does not want to wait for the grace.
            self._kill_now()
            raise

    def kill(self) -> None:
        """End the command the hard way, as a crash would, and return when it is gone."""
        self._kill_now()
        self.stop()

    def _kill_now(self) -> None:
        if self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def output(self) -> str:
        """Return what the command has written to its log since it was started."""
        with self.command.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def unexpected_end(self) -> ServiceError:
        """Describe how a command ended that should have run on."""
        self.stop()
        return self.failure(f"ended with exit code {self.exit_code()}")

    def failure(self, what: str) -> ServiceError:
        """Describe in one message what went wrong, with the end of the log."""
        last = self.output().splitlines()[-_LOG_LINES_SHOWN:]
        lines = "".join(f"\n  {line}" for line in last) or " nothing"
        return ServiceError(f"{self.command.name} {what}; its log ({self.command.log}) says:{lines}")


def poll(condition: Callable[[], T | None], *, within: timedelta) -> T | None:
    """Return the first true value of *condition*; None when the time is up."""
    deadline = time.monotonic() + within.total_seconds()
    while not (value := condition()):
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)
    return value


def _guard_options(command: Command) -> tuple[str, ...]:
    return ("--signal", str(int(command.stop_signal)), "--grace", str(command.grace.total_seconds()))


def _first_line(guard: subprocess.Popen[str]) -> str:
    """Return the process id that the guard reports; empty when it could not start the command."""
    if guard.stdout is None:
        return ""
    with guard.stdout as report:
        return report.readline().strip()
