"""What is read of a background response: event by event over several connections, or whole, as it is retrieved."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Signal, classify
from turnkeeper_worker.providers.interface import Answer, Failed
from turnkeeper_worker.providers.openai_responses import BackgroundStream

from .streams import Heard

USAGE = {"input_tokens": 3, "output_tokens": 2}


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def response(status: object, *output: object, **rest: Any) -> dict[str, Any]:
    return {"id": "resp_1", "status": status, "output": list(output), **rest}


def numbered(*events: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"sequence_number": number, **event} for number, event in enumerate(events)]


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


CREATED = {"type": "response.created", "response": response("queued")}
QUEUED = {"type": "response.queued", "response": response("queued")}
BEGUN = {"type": "response.in_progress", "response": response("in_progress")}
DONE = {"type": "response.completed", "response": response("completed", message("Hi Ada"), usage=USAGE)}
EVENTS = numbered(CREATED, QUEUED, BEGUN, delta("Hi"), delta(" "), delta("Ada"), DONE)


def reader(heard: Heard | None = None, **known: Any) -> BackgroundStream:
    return BackgroundStream(listener=heard or Heard(), provider="openai", **known)


def words(heard: Heard) -> str:
    return "".join(text for _, text in heard.pieces)


def take(stream: BackgroundStream, *events: object) -> Answer | Failed | None:
    results = (stream.take(event) for event in events)
    return next((result for result in results if result is not None), None)


class TestTheCursor:
    def test_it_is_the_number_of_the_last_event(self) -> None:
        stream = reader()

        take(stream, *EVENTS[:4])

        assert stream.cursor == 3

    @pytest.mark.parametrize("number", [None, "7", {}, 1.5])
    def test_an_event_without_a_number_does_not_move_it(self, number: object) -> None:
        stream = reader()

        take(stream, CREATED | {"sequence_number": number})

        assert (stream.cursor, stream.response_id) == (-1, "resp_1")

    def test_it_never_goes_back(self) -> None:
        stream = reader()

        take(stream, *EVENTS[:4], delta("!") | {"sequence_number": 0})

        assert stream.cursor == 3

    @given(breaks=st.lists(st.integers(0, len(EVENTS) - 1), max_size=4).map(sorted), behind=st.booleans())
    def test_wherever_connections_break_each_word_is_said_once(self, breaks: list[int], behind: bool) -> None:
        heard = Heard()
        stream = reader(heard)

        for place in breaks:
            # A server either goes on behind the cursor or, where it knows no better, begins at the start.
            take(stream, *(EVENTS[stream.cursor + 1 : place] if behind else EVENTS[:place]))
            stream.resume()
        result = take(stream, *(EVENTS[stream.cursor + 1 :] if behind else EVENTS))

        assert isinstance(result, Answer)
        assert words(heard) == result.messages[0].text == "Hi Ada"
        assert heard.begun == ["resp_1"]


class TestTheQueue:
    @pytest.mark.parametrize(
        ("heard", "is_queued"),
        [
            pytest.param([CREATED], True, id="created"),
            pytest.param([CREATED, QUEUED], True, id="queued"),
            pytest.param([{"type": "response.queued"}], True, id="queued, by the name alone"),
            pytest.param([CREATED, {"type": "keepalive"}, {"type": 7}], True, id="pings change nothing"),
            pytest.param([CREATED, QUEUED, BEGUN], False, id="begun"),
            pytest.param([CREATED, delta("Hi")], False, id="a word is a beginning"),
            pytest.param([{"type": "response.created", "response": response([])}], False, id="no status"),
        ],
    )
    def test_a_response_is_queued_until_it_begins(self, heard: list[dict[str, Any]], is_queued: bool) -> None:
        stream = reader()

        take(stream, *numbered(*heard))

        assert stream.is_queued is is_queued

    @pytest.mark.parametrize(("status", "is_queued"), [("queued", True), ("in_progress", False)])
    def test_a_response_that_is_found_says_so_itself(self, status: str, is_queued: bool) -> None:
        stream = reader(response_id="resp_1", is_queued=not is_queued)

        assert stream.find(response(status)) is None
        assert stream.is_queued is is_queued


class TestTheEnd:
    def test_the_answer_is_what_the_response_holds_and_not_what_was_heard(self) -> None:
        done = {"type": "response.output_item.done", "item": message("only the rest")}
        stream = reader(response_id="resp_1", cursor=2)

        result = take(stream, done, DONE)

        assert isinstance(result, Answer)
        assert result.messages[0].text == "Hi Ada"
        assert stream.is_over

    @pytest.mark.parametrize(
        "last",
        [
            pytest.param(response("completed"), id="completed"),
            pytest.param(response("incomplete"), id="incomplete"),
            pytest.param(response("in_progress", message("Hi")), id="not over, it says"),
            pytest.param(response({"odd": 1}, message("Hi")), id="no status"),
            pytest.param(None, id="no response"),
        ],
    )
    def test_a_last_event_without_the_answer_is_no_end(self, last: object) -> None:
        done = {"type": "response.output_item.done", "item": message("a part of it")}
        stream = reader()

        result = take(stream, *numbered(CREATED, done, {"type": "response.completed", "response": last}))

        assert isinstance(result, Failed)
        assert (stream.is_told, stream.is_over) == (True, False)

    @pytest.mark.parametrize(
        ("found", "signal", "kind"),
        [
            pytest.param(response("completed"), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, id="empty"),
            pytest.param(response("cancelled"), Signal.PROVIDER_CANCELLED, ErrorKind.TIMEOUT, id="cancelled"),
            pytest.param(
                response("failed", error={"code": "server_is_overloaded", "message": "Full."}),
                Signal.SSE_ERROR_EVENT,
                ErrorKind.OVERLOADED,
                id="failed",
            ),
            pytest.param(
                response("incomplete", incomplete_details={"reason": "content_filter"}),
                Signal.CONTENT_FILTER,
                ErrorKind.CONTENT_FILTER,
                id="filtered",
            ),
        ],
    )
    def test_a_response_that_is_found_is_judged_like_the_last_event(
        self, found: dict[str, Any], signal: Signal, kind: ErrorKind
    ) -> None:
        heard = Heard()
        stream = reader(heard, response_id="resp_1", cursor=4)
        take(stream, {"type": "response.output_item.done", "item": message("a part of it")})

        result = stream.find(found | {"usage": USAGE})

        assert isinstance(result, Failed)
        assert result.failure.signal is signal
        assert classify(result.failure, now=datetime(2026, 3, 1, tzinfo=UTC)).error.kind is kind
        assert (result.usage, heard.counts) == (USAGE, [USAGE])

    def test_a_response_that_is_found_whole_is_the_answer(self) -> None:
        heard = Heard()

        result = reader(heard, response_id="resp_1", cursor=4).find(response("completed", message("Hi Ada")))

        assert isinstance(result, Answer)
        assert (result.messages[0].text, result.can_anchor) == ("Hi Ada", True)
        assert (heard.begun, words(heard)) == (["resp_1"], "")


KEYS = ["type", "id", "response", "status", "output", "sequence_number", "usage", "error", "item", "delta"]
STATUSES = ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.text(max_size=3) | st.sampled_from(STATUSES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=10,
)
objects = st.dictionaries(st.sampled_from(KEYS), anything, max_size=6)
names = st.sampled_from([*(event["type"] for event in EVENTS), "response.output_item.done", "error"])


@given(
    st.lists(st.builds(lambda event, name: event | {"type": name}, objects, names) | anything, max_size=5), objects
)
def test_no_event_and_no_response_makes_it_raise(events: list[object], found: dict[str, Any]) -> None:
    stream = reader(response_id="resp_1")

    for result in (take(stream, *events), stream.find(found)):
        if isinstance(result, Failed):
            assert classify(result.failure, now=datetime(2026, 3, 1, tzinfo=UTC)).error.message
