"""What no present version of the APIs sends, as a newer one might: a client has to pass over it.

Each series here is the ordinary one of its API, and more.  Nothing in it is a chunk, and no id, no piece of
the text and no end differs from the ordinary answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from turnkeeper_ops.simulator.anthropic_events import MessageSeries
from turnkeeper_ops.simulator.chat_chunks import ChunkSeries
from turnkeeper_ops.simulator.encoding import encode_data
from turnkeeper_ops.simulator.responses_events import EventSeries
from turnkeeper_ops.simulator.wire import Frame, FrameKind, Reply

NOVELTY: Mapping[str, Any] = {"type": "novelty", "levels": [{"index": 0, "of": None}]}
"""The value of every new field."""
NOVEL_ITEM = "novel_item"
NOVEL_PART = "output_novel"
NOVEL_BLOCK = "novel_block"
NOVEL_USAGE: Mapping[str, Any] = {"novel_tokens": 3, "novel_tokens_details": {"levels": [1, 2]}}


def with_novelties(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole message of Chat Completions with fields and annotations of unknown types."""
    return {**message, "novel": NOVELTY, "annotations": [NOVELTY]}


class NovelEventSeries(EventSeries):
    """The events of a Responses answer, with others among them."""

    def say(self, reply: Reply) -> None:
        """Add every item of *reply*, between two items of an unknown type."""
        self._event()
        self._item()
        super().say(reply)
        self._item()
        self._event()

    def _add(self, event: str, kind: FrameKind = FrameKind.EVENT, /, **fields: Any) -> None:
        super()._add(event, kind, **fields, novel=NOVELTY)

    def _add_deltas(self, name: str, place: Mapping[str, Any], pieces: tuple[str, ...], **after: Any) -> None:
        super()._add_deltas(name, place, pieces[:1], **after, novel=NOVELTY)
        self._event()
        super()._add_deltas(name, place, pieces[1:], **after, novel=NOVELTY)

    def _parts(self, place: Mapping[str, Any], pieces: tuple[str, ...]) -> list[dict[str, Any]]:
        """Add the text between two parts of an unknown type."""
        return [
            self._part({**place, "content_index": 0}),
            self._text_part({**place, "content_index": 1}, pieces),
            self._part({**place, "content_index": 2}),
        ]

    def _event(self) -> None:
        self._add("response.novel")

    def _item(self) -> None:
        item = {"id": self.make_id("nov"), "type": NOVEL_ITEM, "status": "in_progress", "levels": []}
        place = self._begin_item(item)
        self._add("response.novel_item.delta", **place, delta={"level": 1})
        self._end_item({**item, "status": "completed", "levels": [1]})

    def _part(self, place: Mapping[str, Any]) -> dict[str, Any]:
        part = {"type": NOVEL_PART, "levels": [1]}
        self._add("response.content_part.added", **place, part={**part, "levels": []})
        self._add("response.output_novel.delta", **place, delta=1)
        self._add("response.content_part.done", **place, part=part)
        return part


class NovelChunkSeries(ChunkSeries):
    """The chunks of a completion, with others among them."""

    def say(self, reply: Reply, call_ids: Sequence[str]) -> None:
        """Add everything but the end, between two chunks that say nothing known."""
        self._choiceless()
        super().say(reply, call_ids)
        self._choiceless()

    def chunk(self, delta: Mapping[str, Any], reason: str | None = None, **rest: Any) -> bytes:
        """Encode one chunk, with a new field at its top and in its delta."""
        return super().chunk({**delta, "novel": NOVELTY}, reason, **rest, novel=NOVELTY)

    def _add(self, delta: Mapping[str, Any], kind: FrameKind = FrameKind.CHUNK) -> None:
        super()._add(delta, kind)
        self.frames.append(Frame(self.chunk({"novel_content": [{"index": 0, **NOVELTY}]})))

    def _choiceless(self) -> None:
        self.frames.append(Frame(encode_data({**self.head, "choices": [], "novel": NOVELTY})))


class NovelMessageSeries(MessageSeries):
    """The events of a message, with others among them."""

    def _say(self, reply: Reply) -> None:
        """Add every block, between two of an unknown type."""
        self._novel_block()
        super()._say(reply)
        self._novel_block()

    def _add(self, event: str, kind: FrameKind = FrameKind.EVENT, /, **fields: Any) -> None:
        super()._add(event, kind, **fields, novel=NOVELTY)

    def _delta(self, index: int, name: str, text: str, kind: FrameKind) -> None:
        self._novel_delta(index)
        super()._delta(index, name, text, kind)

    def _novel_block(self) -> None:
        self._add("novel")
        index, block = len(self.content), {"type": NOVEL_BLOCK, "levels": [1]}
        self._add("content_block_start", index=index, content_block={**block, "levels": []})
        self._novel_delta(index)
        self._add("content_block_stop", index=index)
        self.content.append(block)

    def _novel_delta(self, index: int) -> None:
        self._add("content_block_delta", index=index, delta={"type": "novel_delta", "level": 1})
