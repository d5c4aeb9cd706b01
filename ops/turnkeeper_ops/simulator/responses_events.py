"""A reply as the event series of the Responses API.  Pure; the ids are made by whoever calls.

The series is the whole one: every item, part and piece of text is announced, streamed and closed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from turnkeeper_ops.simulator.answers import count_tokens
from turnkeeper_ops.simulator.encoding import encode_event, encode_json, utf8
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.wire import Call, Frame, FrameKind, Reply

MakeId = Callable[[str], str]
"""Makes a fresh id from a prefix, such as `msg`."""


@dataclass(slots=True)
class EventSeries:
    """The events of one response, numbered as they are added."""

    response: Mapping[str, Any]
    """The response at its beginning: in progress, or queued where it is a background response."""
    make_id: MakeId
    seal: Seal | None = None
    """What reasoning is closed with for the client; None: it did not ask for `reasoning.encrypted_content`."""
    frames: list[Frame] = field(default_factory=list)
    output: list[dict[str, Any]] = field(default_factory=list)

    def open(self) -> None:
        """Announce the response."""
        self._add("response.created", response=self.response)
        if self.response["background"]:
            self._add("response.queued", response=self.response)
        self._add("response.in_progress", FrameKind.START, response={**self.response, "status": "in_progress"})

    def say(self, reply: Reply) -> None:
        """Add every item of *reply*."""
        if reply.reasoning is not None or reply.search is not None:
            # A search always comes with its reasoning; that is the pair whose loss the API refuses.
            self._reason("" if reply.redacted else reply.reasoning or "")
        if reply.search is not None:
            self._search(reply.search)
        if reply.chunks:
            self._write(reply.chunks, status="incomplete" if reply.stopped else "completed")
        for call in reply.calls:
            self._call(call)

    def close(self, response: Mapping[str, Any]) -> None:
        """Add the terminal event; its name is the response's status."""
        self._add(f"response.{response['status']}", FrameKind.TERMINAL, response=response)

    def _add(self, event: str, kind: FrameKind = FrameKind.EVENT, /, **fields: Any) -> None:
        payload = {"type": event, "sequence_number": len(self.frames), **fields}
        self.frames.append(Frame(encode_event(event, payload), kind))

    def _add_deltas(self, name: str, place: Mapping[str, Any], pieces: tuple[str, ...], **after: Any) -> None:
        """Add one chunk per piece; the event is encoded once, and only its number and text are put in."""
        opening = f'event: {name}\ndata: {{"type":"{name}","sequence_number":'
        middle = f',{encode_json(place)[1:-1]},"delta":'
        ending = f",{encode_json(after)[1:-1]}}}\n\n" if after else "}\n\n"
        for number, piece in enumerate(pieces, start=len(self.frames)):
            data = utf8(f"{opening}{number}{middle}{encode_json(piece)}{ending}")
            self.frames.append(Frame(data, FrameKind.CHUNK))

    def _begin_item(self, item: dict[str, Any]) -> dict[str, Any]:
        """Announce an item; return where it stands, for the events about it."""
        self._add("response.output_item.added", output_index=len(self.output), item=item)
        return {"item_id": item["id"], "output_index": len(self.output)}

    def _end_item(self, item: dict[str, Any]) -> None:
        self._add("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)

    def _reason(self, summary: str) -> None:
        item: dict[str, Any] = {"id": self.make_id("rs"), "type": "reasoning", "summary": []}
        if self.seal is not None:
            item["encrypted_content"] = self.seal.close(item["id"])
        place = self._begin_item(item) | {"summary_index": 0}
        if summary:
            part = {"type": "summary_text", "text": summary}
            self._add("response.reasoning_summary_part.added", **place, part={**part, "text": ""})
            self._add_deltas("response.reasoning_summary_text.delta", place, (summary,))
            self._add("response.reasoning_summary_text.done", **place, text=summary)
            self._add("response.reasoning_summary_part.done", **place, part=part)
            item = {**item, "summary": [part]}
        self._end_item(item)

    def _search(self, query: str) -> None:
        action = {"type": "search", "query": query}
        item = {
            "id": self.make_id("ws"),
            "type": "web_search_call",
            "status": "in_progress",
            "action": action,
        }
        place = self._begin_item(item)
        for stage in ("in_progress", "searching", "completed"):
            self._add(f"response.web_search_call.{stage}", **place)
        self._end_item({**item, "status": "completed"})

    def _write(self, pieces: tuple[str, ...], status: str) -> None:
        message = {"id": self.make_id("msg"), "type": "message", "role": "assistant"}
        place = self._begin_item({**message, "status": "in_progress", "content": []})
        self._end_item({**message, "status": status, "content": self._parts(place, pieces)})

    def _parts(self, place: Mapping[str, Any], pieces: tuple[str, ...]) -> list[dict[str, Any]]:
        """Add the content parts of a message; return them."""
        return [self._text_part({**place, "content_index": 0}, pieces)]

    def _text_part(self, place: Mapping[str, Any], pieces: tuple[str, ...]) -> dict[str, Any]:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        self._add("response.content_part.added", **place, part=part)
        self._add_deltas("response.output_text.delta", place, pieces, logprobs=[])
        text = "".join(pieces)
        part = {**part, "text": text}
        self._add("response.output_text.done", **place, text=text, logprobs=[])
        self._add("response.content_part.done", **place, part=part)
        return part

    def _call(self, call: Call) -> None:
        item = {
            "id": self.make_id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "name": call.name,
            "call_id": call.call_id or self.make_id("call"),
            "arguments": "",
        }
        place = self._begin_item(item)
        self._add_deltas("response.function_call_arguments.delta", place, call.pieces)
        self._add("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        status = "completed" if call.whole else "incomplete"
        self._end_item({**item, "status": status, "arguments": call.arguments})


def output_usage(reply: Reply) -> tuple[int, int]:
    """Return the output tokens of *reply*, and how many of them are reasoning."""
    reasoning = count_tokens(len(reply.reasoning or ""))
    text = count_tokens(sum(map(len, reply.chunks)))
    calls = sum(count_tokens(len(call.name) + len(call.arguments)) for call in reply.calls)
    return reasoning + text + calls, reasoning
