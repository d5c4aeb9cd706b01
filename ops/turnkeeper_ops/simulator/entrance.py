"""The door: the first bytes of a connection tell whether it speaks HTTP/1.1 or HTTP/2 (h2c, prior knowledge)."""

import asyncio
from typing import cast

from turnkeeper_ops.simulator.channel import Handler
from turnkeeper_ops.simulator.connection import Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Entrance(asyncio.Protocol):
    """Reads until the version is known, and hands the connection over."""

    def __init__(self, handler: Handler, connections: set[asyncio.Transport]) -> None:
        self._handler = handler
        self._connections = connections
        self._read = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # A cast, for uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self._transport)

    def data_received(self, data: bytes) -> None:
        """Read on; hand over as soon as the version is known."""
        self._read += data
        if self._read.startswith(PREFACE):
            self._hand_over(self._http2())
        elif not PREFACE.startswith(self._read):
            self._hand_over(Connection(self._handler, self._connections))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # how it ended makes no difference
        """Forget who left before a word was said."""
        self._connections.discard(self._transport)

    def _hand_over(self, protocol: asyncio.Protocol) -> None:
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(bytes(self._read))

    def _http2(self) -> asyncio.Protocol:
        # Only who speaks HTTP/2 needs the `h2` package.
        from turnkeeper_ops.simulator.http2 import Http2Connection  # noqa: PLC0415

        return Http2Connection(self._handler, self._connections)
