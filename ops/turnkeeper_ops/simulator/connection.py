"""One TCP connection: HTTP/1.1 in, and out as politely or as rudely as asked.

h11 reads requests and writes heads and ends; the pieces of a body are framed here, one by one, because
they are the hot path.  A connection that the client closes cancels the request that runs on it.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from email.utils import formatdate
from typing import cast

import h11

from turnkeeper_ops.simulator.channel import MAX_BODY_BYTES, Handler, Request, close_with_reset, drain


class Connection(asyncio.Protocol):
    """The server's end of a connection; requests on it are answered one after the other."""

    def __init__(self, handler: Handler, connections: set[asyncio.Transport]) -> None:
        self._handler = handler
        self._connections = connections
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._out = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # A cast, for uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self._transport)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._h11.receive_data(data)
        self._advance()

    def eof_received(self) -> bool:
        """Take the client's FIN for a hang-up: an HTTP client that still listens does not close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # how it ended makes no difference
        """Stop what runs for a client that is gone."""
        self._connections.discard(self._transport)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    # What a handler calls.

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Write the status line and headers; the length of the body is not known yet."""
        every = [
            ("Date", formatdate(usegmt=True)),
            ("Server", "turnkeeper-simulator"),
            ("Transfer-Encoding", "chunked"),
            *headers,
        ]
        self._out += self._h11.send(h11.Response(status_code=status, headers=every)) or b""

    def write(self, data: bytes) -> None:
        """Write a piece of the body; it leaves with the next flush."""
        if data:
            self._out += b"%x\r\n%b\r\n" % (len(data), data)

    async def flush(self) -> None:
        """Hand everything to the socket; wait while the client reads slowly."""
        if self._out:
            self._transport.write(bytes(self._out))
            self._out.clear()
        if not self._writable.is_set():
            await self._writable.wait()

    async def finish(self) -> None:
        """End the body as HTTP requires."""
        self._out += self._h11.send(h11.EndOfMessage()) or b""
        await self.flush()

    async def cut(self) -> None:
        """Close with FIN, wherever the body is."""
        await self.flush()
        await drain(self._transport)
        self._transport.close()

    async def reset(self) -> None:
        """Close with RST, after what was written has left."""
        await self.flush()
        await close_with_reset(self._transport)

    async def reset_stream(self, code: int) -> None:  # noqa: ARG002  # there are no streams, and no codes
        """Reset: there is one answer at a time on a connection."""
        await self.reset()

    async def go_away(self, code: int) -> None:  # noqa: ARG002  # as above
        """Cut: HTTP/1.1 has no farewell."""
        await self.cut()

    # The requests, one after the other.

    def _advance(self) -> None:
        try:
            while self._task is None and self._take(self._h11.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)

    def _take(self, event: object) -> bool:
        """Take in one event; tell whether another may follow."""
        match event:
            case h11.Request():
                self._head = event
                self._body.clear()
                if self._h11.they_are_waiting_for_100_continue:
                    self._transport.write(
                        self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                    )
                return True
            case h11.Data():
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
                return True
            case h11.EndOfMessage():
                self._task = asyncio.get_running_loop().create_task(self._serve())
        return False

    async def _serve(self) -> None:
        try:
            # A cancel comes from `connection_lost`; the handler has noted it, and nobody awaits this task.
            with contextlib.suppress(asyncio.CancelledError):
                await self._handler(self._request(), self)
        finally:
            self._task = None
            self._go_on_or_close()

    def _go_on_or_close(self) -> None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._advance()
        elif not self._transport.is_closing():
            self._transport.close()

    def _request(self) -> Request:
        assert self._head is not None  # noqa: S101  # the request's end came after its beginning
        return Request(
            method=self._head.method.decode(),
            target=self._head.target.decode(),
            headers={name.decode(): value.decode("latin-1") for name, value in self._head.headers},
            body=bytes(self._body),
        )

    def _refuse(self, status: int) -> None:
        if self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            head = h11.Response(status_code=status, headers=[("Connection", "close"), ("Content-Length", "0")])
            self._transport.write(self._h11.send(head) or b"")
        self._transport.close()
