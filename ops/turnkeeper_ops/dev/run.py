"""The command `turnkeeper dev`: a stack for as long as a person or a program wants it."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from turnkeeper import TurnkeeperError
from turnkeeper_ops.dev.folder import AlreadyRunning
from turnkeeper_ops.dev.stack import Stack, stack
from turnkeeper_ops.services.process import ServiceError

STOPPED = 0
FAILED = 1
REFUSED = 2

# SIGINT too: shells start background jobs with it ignored, and `kill -INT` should end those all the same.
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def run_dev(folder: Path, *, workers: int, concurrency: int, simulator: bool, as_json: bool = False) -> int:
    """Run a stack until Ctrl-C, SIGTERM or the end of one of its parts; return the exit code.

    With *as_json* standard output is one line of JSON, written when the stack is ready.
    """
    progress = sys.stderr if as_json else sys.stdout

    def announce(name: str, where: str) -> None:
        _say(progress, f"  {name:<12}{where}")

    try:
        with (
            _endings_as_interrupt(),
            stack(
                folder, workers=workers, concurrency=concurrency, simulator=simulator, announce=announce
            ) as running,
        ):
            announce("environment", f"source {running.state.environment}")
            announce("logs", str(running.state.logs))
            _say(sys.stdout, _as_json(running) if as_json else "ready")
            running.watch()
    except KeyboardInterrupt:
        _say(progress, "stopped")
        return STOPPED
    except AlreadyRunning as error:
        _say(sys.stderr, str(error))
        return REFUSED
    # OSError: the folder cannot be written, or the disk is full.
    except (ServiceError, TurnkeeperError, OSError) as error:
        _say(sys.stderr, str(error))
        return FAILED


@contextmanager
def _endings_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the stack as Ctrl-C does: in order."""
    # Under `nohup` a closed terminal is to be survived.
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    endings = _ENDINGS if is_nohup else (*_ENDINGS, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in endings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_json(running: Stack) -> str:
    return json.dumps({**asdict(running.addresses), "env_file": str(running.state.environment)})


def _say(stream: TextIO, line: str) -> None:
    """Write a line at once, for programs wait for it; without rich, which an interrupt makes say it twice."""
    stream.write(f"{line}\n")
    stream.flush()
