"""What an endpoint is given: a request, and a channel to answer it on, politely or as rudely as asked."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

MAX_BODY_BYTES = 64 * 1024 * 1024
FLUSH_POLL_SECONDS = 0.005
LINGER_ZERO = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time at all: closing sends RST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, read to its end."""

    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


class Channel(Protocol):
    """Where one request is answered, in any version of HTTP."""

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Write the status line and headers; the length of the body is not known yet."""
        ...

    def write(self, data: bytes) -> None:
        """Write a piece of the body; it leaves with the next flush."""
        ...

    async def flush(self) -> None:
        """Hand everything to the socket; wait while the client reads slowly."""
        ...

    async def finish(self) -> None:
        """End the body as HTTP requires."""
        ...

    async def cut(self) -> None:
        """Close the connection with FIN, wherever the body is."""
        ...

    async def reset(self) -> None:
        """Close the connection with RST, after what was written has left."""
        ...

    async def reset_stream(self, code: int) -> None:
        """End this answer alone with RST_STREAM; before HTTP/2 that is a reset."""
        ...

    async def go_away(self, code: int) -> None:
        """Announce the end of the connection with GOAWAY, and close it; before HTTP/2 that is a cut."""
        ...


Handler: TypeAlias = Callable[[Request, Channel], Awaitable[None]]


async def drain(transport: asyncio.Transport) -> None:
    """Wait until the kernel was given everything."""
    # A lingering time of zero throws away what is still in the transport's own buffer.  There is no event for
    # an empty buffer below the high-water mark, so this polls; only faults come here.
    while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(FLUSH_POLL_SECONDS)


async def close_with_reset(transport: asyncio.Transport) -> None:
    """Close with RST, after what was written has left."""
    await drain(transport)
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    transport.abort()
