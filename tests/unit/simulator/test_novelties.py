"""Novelties: what only a newer version would send stands among what is known, and changes nothing of it."""

import json
from typing import Any

import pytest

from turnkeeper_ops.simulator.anthropic_events import MessageSeries
from turnkeeper_ops.simulator.chat_chunks import ChunkSeries
from turnkeeper_ops.simulator.novelties import NovelChunkSeries, NovelEventSeries, NovelMessageSeries
from turnkeeper_ops.simulator.responses_events import EventSeries
from turnkeeper_ops.simulator.scripts import Answering
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.wire import Call, Frame, FrameKind, Reply

CALL = Call(name="f", pieces=("{", "}"), call_id="call_1")
REPLY = Reply(chunks=("Hel", "lo"), reasoning="Hm", search="rivers", calls=(CALL,), novel=True)
RESPONSE = {"id": "resp_1", "background": False}

Event = dict[str, Any]


def make_id(prefix: str) -> str:
    return f"{prefix}_1"


def decoded(frames: list[Frame]) -> list[Event]:
    return [json.loads(frame.data.decode().partition("data: ")[2]) for frame in frames]


def responses(kind: type[EventSeries]) -> list[Frame]:
    series = kind(RESPONSE, make_id)
    series.open()
    series.say(REPLY)
    return series.frames


def chat(kind: type[ChunkSeries]) -> list[Frame]:
    series = kind({"id": "chatcmpl-1"}, usage_follows=False)
    series.say(REPLY, ["call_1"])
    return series.frames


def messages(kind: type[MessageSeries]) -> list[Frame]:
    series = kind({"id": "msg_1"}, make_id, Seal("sk-1"))
    series.say(REPLY)
    return series.frames


PLAIN = {"responses": responses(EventSeries), "chat": chat(ChunkSeries), "messages": messages(MessageSeries)}
NOVEL = {
    "responses": responses(NovelEventSeries),
    "chat": chat(NovelChunkSeries),
    "messages": messages(NovelMessageSeries),
}
PLACES = {"sequence_number", "index", "output_index", "content_index"}


def without_new_fields(value: Any) -> Any:
    match value:
        case dict():
            return {name: without_new_fields(inner) for name, inner in value.items() if name != "novel"}
        case list():
            return [without_new_fields(inner) for inner in value]
    return value


def is_novel(event: Event) -> bool:
    """Tell whether nothing in the event is known, not even its kind."""
    return "novel" in json.dumps(without_new_fields(event)) or event.get("choices") == []


def chunks(frames: list[Frame]) -> list[Event]:
    """Return the pieces of the answer as who knows nothing new reads them; places may have shifted."""
    events = decoded([frame for frame in frames if frame.kind is FrameKind.CHUNK])
    return [
        {name: value for name, value in without_new_fields(event).items() if name not in PLACES}
        for event in events
    ]


@pytest.mark.parametrize("api", ["responses", "chat", "messages"])
class TestEveryApi:
    def test_the_pieces_of_the_answer_are_the_ordinary_ones(self, api: str) -> None:
        assert chunks(NOVEL[api]) == chunks(PLAIN[api])

    def test_something_novel_stands_before_the_text_in_it_and_after_it(self, api: str) -> None:
        novel = [is_novel(event) for event in decoded(NOVEL[api])]

        first, second = (
            next(place for place, frame in enumerate(NOVEL[api]) if piece in frame.data)
            for piece in (b"Hel", b'"lo"')
        )

        assert any(novel[:first])
        assert any(novel[first:second])
        assert any(novel[second:])
        assert not any(is_novel(event) for event in decoded(PLAIN[api]))

    def test_known_events_have_new_fields(self, api: str) -> None:
        assert all("novel" in event for event in decoded(NOVEL[api]))


def test_sequence_numbers_go_on_without_a_gap() -> None:
    assert [event["sequence_number"] for event in decoded(NOVEL["responses"])] == list(
        range(len(NOVEL["responses"]))
    )


def test_every_block_and_item_has_a_place_of_its_own() -> None:
    blocks = [e["index"] for e in decoded(NOVEL["messages"]) if e["type"] == "content_block_start"]
    items = [e["output_index"] for e in decoded(NOVEL["responses"]) if e["type"] == "response.output_item.added"]

    assert blocks == list(range(len(blocks)))
    assert items == list(range(len(items)))


def test_an_answer_is_not_novel_unless_it_is_asked_for() -> None:
    assert Answering().novel is False
