"""Server-sent events, sans I/O: bytes in, data payloads out.

The event's name is not returned: the APIs we speak repeat it inside the data. The format is the WHATWG's
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream).
"""

from collections.abc import Iterator

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""No provider sends an event of this size; a stream that does would only fill our memory."""


class EventTooLarge(ValueError):
    """The stream holds an event that is too large to be one."""


class SseDecoder:
    r"""Cuts a byte stream into the data of its events, however the network cut it before.

    >>> decoder = SseDecoder()
    >>> list(decoder.feed(b"event: x\ndata: {1"))
    []
    >>> list(decoder.feed(b"}\n\n: ping\n\n"))
    [b'{1}']
    """

    __slots__ = ("_data", "_rest", "_size")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of every event that *chunk* completes.  Raises EventTooLarge."""
        self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event is larger than {MAX_EVENT_BYTES:,} bytes")

    def _take(self, line: bytes) -> Iterator[bytes]:
        if not line:
            # The format says that an event whose data is empty is none.
            if payload := b"\n".join(self._data):
                yield payload
            self._data.clear()
            self._size = 0
        elif line.startswith(b"data:"):
            value = line[5:]
            self._data.append(value[1:] if value.startswith(b" ") else value)
            self._size += len(line)
