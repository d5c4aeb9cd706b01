"""HTTP/2 in cleartext: many answers at once on one connection, each of which may be reset alone."""

import asyncio
import contextlib
from collections.abc import Iterable
from email.utils import formatdate
from typing import cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from turnkeeper_ops.simulator.channel import MAX_BODY_BYTES, Handler, Request, close_with_reset, drain


class Http2Connection(asyncio.Protocol):
    """The server's end of a connection."""

    def __init__(self, handler: Handler, connections: set[asyncio.Transport]) -> None:
        self._handler = handler
        self._connections = connections
        self._streams: dict[int, Stream] = {}
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.transport: asyncio.Transport
        self.moved = asyncio.Event()
        """Set, and replaced, whenever the client may take more, or is gone."""
        self._writable = asyncio.Event()
        self._writable.set()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the server's settings."""
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self.transport)
        self.h2.initiate_connection()
        self.send()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        try:
            events = self.h2.receive_data(data)
        except ProtocolError:
            # What must be said about it is ready to be sent.
            self.send()
            self.transport.close()
            return
        for event in events:
            self._take(event)
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # how it ended makes no difference
        """Stop what runs for a client that is gone."""
        self._connections.discard(self.transport)
        self.resume_writing()
        for stream in tuple(self._streams.values()):
            stream.stop()

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    # What a stream calls.

    def send(self) -> None:
        """Hand to the socket what is ready."""
        data = self.h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    async def send_and_wait(self) -> None:
        """Send; wait while the client reads slowly."""
        self.send()
        await self._writable.wait()

    def forget(self, stream_id: int) -> None:
        """Let go of a stream that has ended."""
        self._streams.pop(stream_id, None)

    def _take(self, event: Event) -> None:
        match event:
            case RequestReceived():
                headers = {str(name): str(value) for name, value in event.headers}
                self._streams[event.stream_id] = Stream(self, event.stream_id, headers)
            case DataReceived():
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if stream := self._streams.get(event.stream_id):
                    stream.receive(event.data)
            case StreamEnded() if event.stream_id in self._streams:
                self._streams[event.stream_id].serve(self._handler)
            case StreamReset() if event.stream_id in self._streams:
                self._streams[event.stream_id].stop()
            case WindowUpdated():
                moved, self.moved = self.moved, asyncio.Event()
                moved.set()
            case ConnectionTerminated():
                self.transport.close()


class Stream:
    """One request, and the channel on which it is answered."""

    def __init__(self, connection: Http2Connection, stream_id: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self._id = stream_id
        self._headers = headers
        self._body = bytearray()
        self._out = bytearray()
        self._task: asyncio.Task[None] | None = None

    # What the connection calls.

    def receive(self, data: bytes) -> None:
        """Take in a piece of the request's body."""
        self._body += data
        if len(self._body) > MAX_BODY_BYTES:
            self._connection.h2.reset_stream(self._id, ErrorCodes.ENHANCE_YOUR_CALM)
            self._connection.forget(self._id)

    def serve(self, handler: Handler) -> None:
        """Answer the request, which is complete."""
        self._task = asyncio.get_running_loop().create_task(self._serve(handler))

    def stop(self) -> None:
        """Stop: the client does not want the answer any more."""
        if self._task is None:
            self._connection.forget(self._id)
        else:
            self._task.cancel()

    # What a handler calls.

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Write the headers."""
        usual = [("date", formatdate(usegmt=True)), ("server", "turnkeeper-simulator")]
        own = [(name.lower(), value) for name, value in headers]
        self._connection.h2.send_headers(self._id, [(":status", str(status)), *usual, *own])

    def write(self, data: bytes) -> None:
        """Write a piece of the body; it leaves with the next flush."""
        self._out += data

    async def flush(self) -> None:
        """Send what was written, as much at a time as the client allows."""
        h2 = self._connection.h2
        while self._out:
            size = min(h2.local_flow_control_window(self._id), h2.max_outbound_frame_size, len(self._out))
            if size <= 0:
                moved = self._connection.moved
                await self._connection.send_and_wait()
                await moved.wait()
                continue
            h2.send_data(self._id, bytes(self._out[:size]))
            del self._out[:size]
        await self._connection.send_and_wait()

    async def finish(self) -> None:
        """End the stream as HTTP/2 requires."""
        await self.flush()
        self._connection.h2.end_stream(self._id)
        self._connection.send()

    async def cut(self) -> None:
        """Close the whole connection with FIN."""
        await self.flush()
        await drain(self._connection.transport)
        self._connection.transport.close()

    async def reset(self) -> None:
        """Close the whole connection with RST."""
        await self.flush()
        await close_with_reset(self._connection.transport)

    async def reset_stream(self, code: int) -> None:
        """End this answer alone."""
        await self.flush()
        self._connection.h2.reset_stream(self._id, code)
        self._connection.send()

    async def go_away(self, code: int) -> None:
        """Say that the connection ends, and with which stream; then close it."""
        await self.flush()
        self._connection.h2.close_connection(code, last_stream_id=self._id)
        self._connection.send()
        await drain(self._connection.transport)
        self._connection.transport.close()

    async def _serve(self, handler: Handler) -> None:
        try:
            # A cancel means that the client is gone; the handler has noted it, and nobody awaits this task.
            with contextlib.suppress(asyncio.CancelledError):
                await handler(self._request(), self)
        finally:
            self._connection.forget(self._id)

    def _request(self) -> Request:
        return Request(
            method=self._headers[":method"],
            target=self._headers[":path"],
            headers={name: value for name, value in self._headers.items() if not name.startswith(":")},
            body=bytes(self._body),
        )
