"""Server-sent events, sans I/O: bytes in, data payloads out.

The event's name is not returned: the APIs we speak repeat it inside the data. The format is the WHATWG's
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream).
"""

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""No provider sends an event of this size; a stream that does would only fill our memory."""


_EMPTY = (b"", b"\r")


class EventTooLarge(ValueError):
    """The stream holds an event that is too large to be one."""


class SseDecoder:
    r"""Cuts a byte stream into the data of its events, however the network cut it before.

    >>> decoder = SseDecoder()
    >>> decoder.feed(b"event: x\ndata: {1")
    []
    >>> decoder.feed(b"}\n\n: ping\n\n")
    [b'{1}']
    """

    __slots__ = ("_data", "_rest", "_size")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of every event that *chunk* completes.  Raises EventTooLarge."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        payloads = []
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line.removesuffix(b"\r"))
            elif line in _EMPTY and self._data:
                payloads.append(self._end())
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event is larger than {MAX_EVENT_BYTES:,} bytes")
        # The format says that an event whose data is empty is none.
        return list(filter(None, payloads))

    def _take(self, line: bytes) -> None:
        self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        self._size += len(line)

    def _end(self) -> bytes:
        payload = b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        return payload
