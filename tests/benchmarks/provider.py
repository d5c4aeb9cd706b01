"""A lean provider: Responses streams by the thousand, cheap enough not to be what is measured.

The simulator speaks every dialect and every fault, and takes most of a core for what a worker does with less. This
one knows a single answer. The model's name says how it is given:

    held        nothing after `/hold`, deltas at the common rate after `/open`, the end after `/close`
    paced-N     N deltas at the common rate, the first one at once
    short-N     N deltas and the end, all at once

Each delta is the moment at which it was sent, by the machine's monotonic clock, so whoever hears it, however late
and through whatever, can tell the delay. `/stats` says what was sent, and how late the provider was itself.
"""

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.request import Request, urlopen

import uvloop
from tests.benchmarks.listening import tell, until_parent_leaves

from turnkeeper_ops.services.ports import LOOPBACK

SLOTS = 10
"""The streams take turns within one period, so that their events are spread out as real ones are."""
_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_LENGTH = re.compile(rb"content-length: ?(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}


@dataclass(slots=True)
class Provider:
    """What all streams share: the rate, the gate, the counts."""

    per_second: float
    is_open: bool = False
    is_closed: bool = False
    sent: int = 0
    finished: int = 0
    requests: int = 0
    lag: float = 0.0
    """The longest time by which the provider was late with its own events, in seconds."""
    slots: "list[set[Stream]]" = field(default_factory=lambda: [set() for _ in range(SLOTS)])

    async def turn(self) -> None:
        """Let the streams of one slot after the other say their next piece, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for slot in self.slots:
                due += 1 / self.per_second / SLOTS
                await asyncio.sleep(max(0.0, due - loop.time()))
                self.lag = max(self.lag, loop.time() - due)
                for stream in tuple(slot):
                    stream.advance()

    def control(self, path: str) -> dict[str, Any]:
        """Hold the words back, let them out, or end what was held; tell the counts, and a lag once."""
        if path in {"/hold", "/open", "/close"}:
            self.is_open, self.is_closed = path == "/open", path == "/close"
        told = {
            "streams": sum(map(len, self.slots)),
            "sent": self.sent,
            "finished": self.finished,
            "requests": self.requests,
            "lag_ms": self.lag * 1000,
        }
        self.lag = 0.0
        return told


class Stream(asyncio.Protocol):
    """One connection, and the answer that it is given."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._received = b""
        self._slot: set[Stream] = set()
        self._said: list[str] = []
        self._left: int | None = None
        """How many deltas are still to come; None: until the gate closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._slot.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        path = head.split(b" ", 2)[1].decode()
        if path.endswith("/responses"):
            self._answer(_MODEL.search(body))
        else:
            content = json.dumps(self._provider.control(path)).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))

    def _answer(self, model: re.Match[bytes] | None) -> None:
        self._provider.requests += 1
        self._said = []
        kind, _, count = (model[1] if model else b"short-1").decode().partition("-")
        self._response = {"id": f"resp_{self._provider.requests}", "object": "response", "model": "lean"}
        self._response |= {"created_at": int(time.time()), "tools": [], "parallel_tool_calls": True}
        self._transport.write(_HEAD + _chunk(self._beginning()))
        match kind:
            case "short":
                self._transport.write(b"".join([self._delta() for _ in range(int(count))] + [self._end()]))
            case "paced":
                self._left = int(count)
                self._take_slot()
                self.advance()
            case _:
                self._left = None
                self._take_slot()

    def _take_slot(self) -> None:
        self._slot = self._provider.slots[self._provider.requests % SLOTS]
        self._slot.add(self)

    def advance(self) -> None:
        """Say the next piece, if there is one now."""
        if self._left is None:
            if self._provider.is_open:
                self._transport.write(self._delta())
            elif self._provider.is_closed:
                # Who says nothing has failed, and would be asked again for ever.
                self._transport.write(b"" if self._said else self._delta())
                self._finish()
        elif self._left > 0:
            self._left -= 1
            self._transport.write(self._delta())
        else:
            self._finish()

    def _finish(self) -> None:
        self._slot.discard(self)
        self._transport.write(self._end())

    def _beginning(self) -> bytes:
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        response = self._response | {"status": "in_progress", "output": []}
        return b"".join(
            (
                _event("response.created", 0, response=response),
                _event("response.output_item.added", 1, output_index=0, item=message),
                _event("response.content_part.added", 2, **_PLACE, part=part),
            )
        )

    def _delta(self) -> bytes:
        self._provider.sent += 1
        said = f"{time.monotonic():.4f} "
        self._said.append(said)
        # Written out, and not by `json`: this is what is done 20,000 times a second.
        return _chunk(
            b"event: response.output_text.delta\n"
            b'data: {"type":"response.output_text.delta","sequence_number":%d,"item_id":"msg_1","output_index":0,'
            b'"content_index":0,"delta":"%b","logprobs":[],"obfuscation":"aW4gdGhlIG1pbGw"}\n\n'
            % (len(self._said) + 2, said.encode())
        )

    def _end(self) -> bytes:
        self._provider.finished += 1
        part = {"type": "output_text", "text": "".join(self._said), "annotations": []}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        number, count = len(self._said) + 3, len(self._said)
        usage = {"input_tokens": 9, "output_tokens": count, "total_tokens": count + 9}
        response = self._response | {"status": "completed", "output": [message], "usage": usage}
        return (
            _chunk(
                _event("response.output_text.done", number, **_PLACE, text=part["text"])
                + _event("response.output_item.done", number + 1, output_index=0, item=message)
                + _event("response.completed", number + 2, response=response)
            )
            + b"0\r\n\r\n"
        )


def _event(name: str, number: int, **fields: Any) -> bytes:
    data = json.dumps({"type": name, "sequence_number": number, **fields}, separators=(",", ":"))
    return f"event: {name}\ndata: {data}\n\n".encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def control(url: str, path: str) -> dict[str, Any]:
    """Ask a running provider for its counts, or open or close its gate."""
    with urlopen(Request(url + path), timeout=10) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


async def serve(per_second: float) -> None:
    """Listen on a free port, say which, and answer until the parent goes away."""
    provider = Provider(per_second)
    server = await asyncio.get_running_loop().create_server(
        lambda: Stream(provider), LOOPBACK, 0, backlog=4096, reuse_address=True
    )
    port = server.sockets[0].getsockname()[1]
    tell(url=f"http://{LOOPBACK}:{port}")
    turning = asyncio.create_task(provider.turn())
    await until_parent_leaves()
    turning.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--per-second", type=float, default=20.0, help="deltas of each stream in a second")
    uvloop.run(serve(parser.parse_args().per_second))
