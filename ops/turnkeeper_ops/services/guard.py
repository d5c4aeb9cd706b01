"""Keep one command running exactly as long as its owner lives: `python -m … [options] -- COMMAND…`.

The owner holds the other end of the guard's standard input and never writes. However the owner ends, the
kernel closes that pipe; the guard reads the end of file and ends the command, politely at first, with
SIGKILL after the grace. Guard and command have sessions of their own, so Ctrl-C reaches neither by accident.

Should the guard itself be killed, Linux kills the command (elsewhere it would run on: nothing kills a guard
but a person). On standard output the guard says one line, the process id of the command; the command's own
output goes to the guard's standard error, which is the log.
"""

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from turnkeeper_ops.services import linux

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or its owner goes; return the command's exit code, shell fashion."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--signal", type=int, default=signal.SIGTERM)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds before SIGKILL")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    wake = _wake_on_signals()
    command = _start(options.command)
    sys.stdout.write(f"{command.pid}\n")
    sys.stdout.close()
    _wait(command, wake)
    _end(command, options.signal, options.grace)
    return command.returncode if command.returncode >= 0 else 128 - command.returncode


def _wake_on_signals() -> int:
    """Return a descriptor that yields the number of each signal that arrives."""
    wake, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGCHLD, *_REQUESTS):
        signal.signal(number, lambda _number, _frame: None)
    return wake


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    guard = os.getpid()

    def tie_to_guard() -> None:
        if sys.platform == "linux":
            linux.die_with_parent()
        # The guard may have been killed before the kernel was asked to watch it.
        if os.getppid() != guard:
            os._exit(1)

    return subprocess.Popen(  # noqa: S603 - running what the owner says is the guard's duty
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=tie_to_guard,  # noqa: PLW1509 - the guard has one thread, so nothing can hold a lock here
    )


def _wait(command: subprocess.Popen[bytes], wake: int) -> None:
    """Return when the command has ended, its owner has gone, or somebody asks the guard to end."""
    owner = sys.stdin.fileno()
    while command.poll() is None:
        ready, _, _ = select.select([owner, wake], [], [])
        if owner in ready or set(os.read(wake, 64)) & set(_REQUESTS):
            return


def _end(command: subprocess.Popen[bytes], how: int, grace: float) -> None:
    command.send_signal(how)
    try:
        command.wait(grace)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()
    # What the command left behind in its session; usually nothing, and then there is no such group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(command.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
