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

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    @property
    def is_inside_event(self) -> bool:
        """Whether the bytes so far end in the middle of an event."""
        return bool(self._rest.strip() or self._data)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of every event that *chunk* completes.  Raises EventTooLarge."""
        self._rest += chunk
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event is larger than {MAX_EVENT_BYTES:,} bytes")
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))

    def _take(self, line: bytes) -> Iterator[bytes]:
        if not line:
            if self._data:
                yield b"\n".join(self._data)
                self._data.clear()
        elif line.startswith(b"data:"):
            value = line[5:]
            self._data.append(value[1:] if value.startswith(b" ") else value)
