"""Starts the simulator, says where it listens, and ends it cleanly on SIGTERM and SIGINT."""

import asyncio
import errno
import os
import resource
import signal
from collections.abc import Callable
from functools import partial

from turnkeeper_ops.simulator.entrance import Entrance
from turnkeeper_ops.simulator.ready_made import ready_made_scripts
from turnkeeper_ops.simulator.routes import handle
from turnkeeper_ops.simulator.state import Settings, State, accounts_of, read_clocks
from turnkeeper_ops.simulator.turns import ScriptBook

MAX_PORT = 65_535
BACKLOG = 4096
"""Connections that may wait to be accepted, so that 1,000 at once do not overflow the queue."""


class CannotListen(Exception):
    """The address cannot be listened on."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(host, port, reason)
        self.host = host
        self.port = port
        self.reason = reason

    def __str__(self) -> str:
        where = f"{self.host}:{self.port}"
        return f"cannot listen on {where}: {self.reason}; choose another --port, or 0 for a free one"


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; print one line when ready.

    Raises:
        CannotListen: The address is taken, or is not ours.
    """
    _raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, announce=_announce))


async def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; call *announce* with the base URL when ready.

    Raises:
        CannotListen: The address is taken, or is not ours.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    connections: set[asyncio.Transport] = set()
    server = await _listen(settings, connections)
    port = server.sockets[0].getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce(f"http://{host}:{port}")
    await stopping.wait()
    server.close()
    for connection in tuple(connections):
        connection.abort()
    # One turn of the loop lets the cancelled requests end.
    await asyncio.sleep(0)


async def _listen(settings: Settings, connections: set[asyncio.Transport]) -> asyncio.Server:
    scripts = ready_made_scripts() | settings.scripts
    state = State(
        settings=settings, book=ScriptBook(scripts), started=read_clocks(), accounts=accounts_of(settings)
    )
    handler = partial(handle, state)
    if not 0 <= settings.port <= MAX_PORT:
        # uvloop would take the port modulo 65,536.
        raise CannotListen(settings.host, settings.port, f"ports end at {MAX_PORT}")
    try:
        return await asyncio.get_running_loop().create_server(
            lambda: Entrance(handler, connections), settings.host, settings.port, backlog=BACKLOG
        )
    except OSError as error:
        raise CannotListen(settings.host, settings.port, _reason(error)) from error


def _reason(error: OSError) -> str:
    """Return the system's own words; the event loops wrap them in theirs, with the address once more."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _announce(url: str) -> None:
    print(f"listening on {url}", flush=True)  # noqa: T201  # the one line that a parent process waits for


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where it is installed; it halves the cost of an event."""
    try:
        import uvloop  # noqa: PLC0415  # optional
    except ImportError:
        return None
    return uvloop.new_event_loop


def _raise_file_limit() -> None:
    """Allow as many sockets as the system lets us have; the usual 1,024 are too few for 1,000 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
