"""The end of a Responses stream: only `completed` and `incomplete` with something said are an answer."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ErrorKind
from turnkeeper.messages import Part, Reasoning, Text, ToolCall, WebSearch
from turnkeeper_worker.failures import Phase, Signal, classify
from turnkeeper_worker.providers.interface import Failed
from turnkeeper_worker.providers.openai_responses import ResponsesStream, read_items, read_usage

from .streams import Heard, Judge

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
CREATED = {"type": "response.created", "response": {"id": "resp_1"}}


def reader(*, store: bool = True, is_chained: bool = False, heard: Heard | None = None) -> ResponsesStream:
    return ResponsesStream(listener=heard or Heard(), provider="openai", is_kept=store, is_chained=is_chained)


judge = Judge(reader)
told, answer, failed = judge.told, judge.answer, judge.failed


def delta(text: str, kind: str = "output_text") -> dict[str, str]:
    return {"type": f"response.{kind}.delta", "delta": text}


def end(name: str, status: str | None = None, **response: Any) -> dict[str, Any]:
    return {"type": name, "response": {"id": "resp_1", "status": status, **response}}


def completed(*output: object, **response: Any) -> dict[str, Any]:
    return end("response.completed", "completed", output=list(output), **response)


def incomplete(*output: object, reason: object = "max_output_tokens") -> dict[str, Any]:
    details = {"reason": reason} if isinstance(reason, str) else reason
    return end("response.incomplete", "incomplete", output=list(output), incomplete_details=details)


def cut(stream: ResponsesStream) -> Failed:
    result = stream.cut()
    assert isinstance(result, Failed)
    return result


class TestAnswers:
    def test_a_completed_response_is_an_answer(self) -> None:
        said = answer(CREATED, delta("Hi"), completed(MESSAGE, model="m-2026"))

        assert said.messages[0].text == "Hi"
        assert (said.response_id, said.model, said.finish) == ("resp_1", "m-2026", "stop")
        assert said.can_anchor

    def test_the_items_are_remembered_where_the_last_event_leaves_them_out(self) -> None:
        done = {"type": "response.output_item.done", "item": MESSAGE}

        assert answer(CREATED, done, completed()).messages[0].text == "Hi"

    def test_a_response_that_asks_for_tools_says_so_and_is_an_anchor_for_their_results(self) -> None:
        said = answer(completed(CALL))

        assert said.finish == "tool_calls"
        assert said.can_anchor

    @pytest.mark.parametrize(
        "reason", ["max_output_tokens", "content_filter", pytest.param({}, id="an unknown reason")]
    )
    def test_an_incomplete_response_that_says_something_is_an_answer_but_no_anchor(self, reason: object) -> None:
        said = answer(incomplete(MESSAGE, reason=reason))

        assert said.finish == (reason or "incomplete")
        assert not said.can_anchor

    def test_what_is_not_stored_is_no_anchor(self) -> None:
        assert not answer(completed(MESSAGE), stream=reader(store=False)).can_anchor

    def test_a_refusal_is_an_answer(self) -> None:
        refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}

        assert answer(completed(refusal)).messages[0].text == "No."

    @pytest.mark.parametrize("name", ["response.completed", "response.incomplete", "response.failed"])
    def test_the_status_counts_and_not_the_name(self, name: str) -> None:
        assert answer(end(name, "completed", output=[MESSAGE])).finish == "stop"
        assert answer(end(name, "incomplete", output=[MESSAGE])).finish == "incomplete"
        assert failed(end(name, "failed", output=[MESSAGE])).failure.signal is Signal.SSE_ERROR_EVENT


class TestFailures:
    @pytest.mark.parametrize(
        ("event", "signal", "kind", "retryable"),
        [
            pytest.param(
                {"type": "error", "code": "server_error", "message": "Sorry."},
                Signal.SSE_ERROR_EVENT,
                ErrorKind.GENERIC,
                True,
                id="a flat error",
            ),
            pytest.param(
                {"type": "error", "error": {"code": "rate_limit_exceeded", "message": "Slow down."}},
                Signal.SSE_ERROR_EVENT,
                ErrorKind.RATE_LIMIT,
                True,
                id="a nested error",
            ),
            pytest.param(
                {"error": {"code": "rate_limit_exceeded", "message": "Slow down."}},
                Signal.SSE_ERROR_EVENT,
                ErrorKind.RATE_LIMIT,
                True,
                id="an error without a name",
            ),
            pytest.param(
                end("response.failed", "failed", error={"code": "server_is_overloaded", "message": "Full."}),
                Signal.SSE_ERROR_EVENT,
                ErrorKind.OVERLOADED,
                True,
                id="a failed response",
            ),
            pytest.param(
                end("response.completed", "cancelled"),
                Signal.PROVIDER_CANCELLED,
                ErrorKind.TIMEOUT,
                True,
                id="a response that somebody else cancelled",
            ),
            pytest.param(
                end("response.completed", "in_progress"),
                Signal.STREAM_TRUNCATED,
                ErrorKind.TIMEOUT,
                True,
                id="an end that is none",
            ),
            pytest.param(
                {"type": "response.completed"}, Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="no response"
            ),
            pytest.param(7, Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="an event that is no object"),
            pytest.param(completed(), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="nothing said"),
            pytest.param(
                completed({"type": "message", "content": [{"type": "output_text", "text": ""}]}),
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                True,
                id="an empty text",
            ),
            pytest.param(
                completed({"type": "reasoning"}), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="only a thought"
            ),
            pytest.param(
                incomplete({"type": "reasoning"}),
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                False,
                id="tokens that did not even last for a word",
            ),
            pytest.param(
                incomplete(reason="content_filter"),
                Signal.CONTENT_FILTER,
                ErrorKind.CONTENT_FILTER,
                False,
                id="filtered before a word",
            ),
        ],
    )
    def test_anything_else_is_a_failure(
        self, event: object, signal: Signal, kind: ErrorKind, retryable: bool
    ) -> None:
        failure = failed(event).failure

        assert failure.signal is signal
        error = classify(failure, now=NOW).error
        assert (error.kind, error.retryable) == (kind, retryable)

    def test_a_failure_told_twice_is_one(self) -> None:
        error = {"type": "error", "error": {"code": "server_error", "message": "Sorry."}}
        stream = reader()

        failed(error, end("response.failed", "failed"), stream=stream)

        assert stream.response_id is None

    def test_a_stream_that_was_cut_knows_how_far_it_came(self) -> None:
        stream = reader(is_chained=True)

        before = cut(stream).failure
        told(CREATED, delta("Hi"), stream=stream)
        after = cut(stream)

        assert (before.phase, before.visible) == (Phase.BEFORE_FIRST_EVENT, False)
        assert (after.failure.phase, after.failure.visible, after.failure.chained) == (
            Phase.MID_STREAM,
            True,
            True,
        )
        assert (after.failure.signal, after.response_id) == (Signal.STREAM_TRUNCATED, "resp_1")

    def test_what_a_failed_response_cost_is_kept(self) -> None:
        usage = {"input_tokens": 7, "output_tokens": 3}

        heard = Heard()

        result = failed(end("response.failed", "failed", usage=usage), stream=reader(heard=heard))

        assert result.usage == usage
        assert heard.counts == [usage]

    @pytest.mark.parametrize(
        ("kind", "visible"),
        [("output_text", True), ("refusal", True), ("reasoning_text", False), ("function_call_arguments", False)],
    )
    def test_only_words_are_visible(self, kind: str, visible: bool) -> None:
        stream = reader()

        told(delta("Hm", kind), stream=stream)

        assert cut(stream).failure.visible is visible


class TestListening:
    def test_pieces_are_passed_on_as_they_come(self) -> None:
        heard = Heard()

        told(
            CREATED,
            delta("Hm", "reasoning_summary_text"),
            delta("Hm", "reasoning_text"),
            delta("{", "function_call_arguments"),
            delta("Hi"),
            delta(""),
            delta("No", "refusal"),
            {"type": "response.output_text.done", "text": "Hi"},
            stream=reader(heard=heard),
        )

        assert heard.begun == ["resp_1"]
        assert heard.pieces == [
            ("reasoning", "Hm"),
            ("reasoning", "Hm"),
            ("tool_call", "{"),
            ("text", "Hi"),
            ("refusal", "No"),
        ]


class TestItems:
    @pytest.mark.parametrize(
        ("item", "parts"),
        [
            pytest.param(MESSAGE, [Text(text="Hi")], id="a message"),
            pytest.param(CALL, [ToolCall(call_id="call_1", name="look", arguments="{}")], id="a call"),
            pytest.param(
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "encrypted_content": "gAAAAA",
                    "summary": [{"text": "One"}, {"text": "Two"}],
                },
                [Reasoning(id="rs_1", encrypted="gAAAAA", text="One\n\nTwo")],
                id="a thought",
            ),
            pytest.param(
                {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}},
                [WebSearch(id="ws_1", action={"type": "search"})],
                id="a search",
            ),
            pytest.param({"type": "image_generation_call", "result": "…"}, [], id="what has no place"),
            pytest.param({}, [], id="an empty item"),
            pytest.param("message", [], id="what is no item"),
        ],
    )
    def test_an_item_becomes_parts(self, item: object, parts: list[Part]) -> None:
        assert list(read_items([item])) == parts

    def test_nothing_keeps_what_postgresql_cannot_store(self) -> None:
        items = [
            {"type": "message", "content": [{"type": "output_text", "text": "a\0"}]},
            {"type": "message", "content": [{"type": "refusal", "refusal": "a\0"}]},
            {"type": "reasoning", "id": "r\0", "encrypted_content": "e\0", "summary": [{"text": "s\0"}]},
            {"type": "function_call", "call_id": "c\0", "name": "n\0", "arguments": "{\0}"},
            {"type": "web_search_call", "id": "w\0", "action": {"q\0": ["\0", {"x": "\0", "y": float("inf")}]}},
        ]

        stored = "".join(part.model_dump_json() for part in read_items(items))

        assert "\\u0000" not in stored
        assert stored.count("\ufffd") == 12

    def test_infinity_is_no_json_and_goes(self) -> None:
        (search,) = read_items([{"type": "web_search_call", "action": {"x": [float("inf"), 1.5]}}])

        assert search == WebSearch(action={"x": [None, 1.5]})

    def test_a_nul_in_a_piece_is_replaced_too(self) -> None:
        heard = Heard()

        told(delta("a\0b"), stream=reader(heard=heard))

        assert heard.pieces == [("text", "a\ufffdb")]


class TestUsage:
    def test_usage_is_flattened(self) -> None:
        usage = {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 15,
        }

        assert read_usage(usage) == {
            "input_tokens": 10,
            "cached_tokens": 8,
            "output_tokens": 5,
            "reasoning_tokens": 0,
            "total_tokens": 15,
        }

    @pytest.mark.parametrize("name", ["completed", "incomplete", "failed", "cancelled"])
    def test_a_count_is_passed_on_however_the_response_ends(self, name: str) -> None:
        heard = Heard()

        told(end("response.completed", name, usage={"input_tokens": 3}), stream=reader(heard=heard))

        assert heard.counts == [{"input_tokens": 3}]

    def test_without_a_count_there_is_nothing_to_pass_on(self) -> None:
        heard = Heard()

        told(completed(MESSAGE, usage=None), stream=reader(heard=heard))

        assert heard.counts == []

    @pytest.mark.parametrize("usage", [None, {}, [], "many", {"input_tokens": None}, {"input_tokens_details": []}])
    def test_absent_is_not_zero(self, usage: object) -> None:
        assert read_usage(usage) is None

    def test_what_is_absent_stays_absent(self) -> None:
        assert read_usage({"input_tokens": 3}) == {"input_tokens": 3}


KEYS = [
    *("type", "id", "response", "status", "output", "content", "text", "summary", "usage", "error", "item"),
    *("incomplete_details", "reason", "delta", "input_tokens_details", "action", "call_id", "arguments"),
]
NAMES = [
    "response.created",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "response.output_item.done",
    "response.output_text.delta",
    "error",
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["completed", "incomplete"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=10,
)
objects = st.dictionaries(st.sampled_from(KEYS), anything, max_size=5)


@st.composite
def strange_events(draw: st.DrawFn) -> dict[str, object]:
    """Draw an event that has the shape of one, and anything in its places."""
    kind = draw(st.sampled_from(["message", "reasoning", "function_call", "web_search_call"]))
    item = draw(objects) | {"type": kind}
    response = draw(objects) | {"output": [item]}
    name = draw(st.sampled_from(NAMES) | anything)
    return draw(objects) | {"type": name, "response": response, "item": item}


@given(st.lists(strange_events() | anything, max_size=4))
def test_no_event_makes_it_raise(events: list[object]) -> None:
    result = told(*events)

    if isinstance(result, Failed):
        assert classify(result.failure, now=NOW).error.message
