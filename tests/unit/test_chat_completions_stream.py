"""The end of a Chat Completions stream: a finish reason, or [DONE] after words; nothing else is an answer."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ErrorKind
from turnkeeper.messages import Citation, Part, Reasoning, Refusal, Text, ToolCall
from turnkeeper_worker.failures import Phase, Signal, classify
from turnkeeper_worker.providers.interface import Answer, Failed
from turnkeeper_worker.providers.openai_chat import ChatStream

from .streams import DONE, Heard, Judge, sprinkled

NOW = datetime(2026, 3, 1, tzinfo=UTC)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def reader(heard: Heard | None = None) -> ChatStream:
    return ChatStream(listener=heard or Heard(), provider="local")


judge = Judge(reader)
told, answer, failed = judge.told, judge.answer, judge.failed


def chunk(finish: object = None, **delta: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "model": "m-2026",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def piece(arguments: str, *, index: object = 0, **rest: Any) -> dict[str, Any]:
    """Return a chunk with a piece of a tool call."""
    name = rest.pop("name", None)
    return chunk(tool_calls=[{"index": index, "function": {"name": name, "arguments": arguments}} | rest])


def messaged(**message: Any) -> dict[str, Any]:
    """Return a last chunk that holds the whole message."""
    return {"choices": [{"index": 0, "message": message, "delta": {}, "finish_reason": "stop"}]}


OPENED = piece("", id="call_1", name="look")
HI = chunk(content="Hi")


class TestAnswers:
    @pytest.mark.parametrize(
        ("events", "finish"),
        [
            pytest.param([HI, chunk("stop"), DONE], "stop", id="a reason and [DONE]"),
            pytest.param([HI, chunk("stop")], "stop", id="a reason alone"),
            pytest.param([HI, DONE], "stop", id="[DONE] alone, as Ollama does it"),
            pytest.param([chunk("stop", content="Hi")], "stop", id="a reason beside the words"),
            pytest.param([HI, chunk("eos"), DONE], "stop", id="the reason of another vendor"),
            pytest.param([HI, chunk("length"), DONE], "max_output_tokens", id="the end of the allowance"),
            pytest.param([HI, chunk("content_filter"), DONE], "content_filter", id="filtered after words"),
            pytest.param([HI, chunk("weariness"), DONE], "weariness", id="a reason that nobody knows"),
            pytest.param([HI, chunk("tool_calls"), DONE], "stop", id="calls that were only announced"),
        ],
    )
    def test_words_and_a_reason_to_stop_are_an_answer(self, events: list[object], finish: str) -> None:
        said = answer(*events)

        assert said.messages[0].parts == (Text(text="Hi"),)
        assert (said.response_id, said.model, said.finish) == ("chatcmpl-1", "m-2026", finish)
        assert not said.can_anchor

    def test_the_usage_that_follows_the_reason_is_waited_for(self) -> None:
        stream = reader()

        assert stream.take(HI) is None
        assert not stream.is_complete
        assert stream.take(chunk("stop")) is None
        assert stream.is_complete
        assert stream.take({"choices": [], "usage": USAGE}) is None
        assert answer(DONE, stream=stream).usage == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}

    @pytest.mark.parametrize("loss", ["cut", "broken", "lost"])
    def test_an_answer_that_is_whole_cannot_be_lost(self, loss: str) -> None:
        stream = reader()
        stream.take(HI)
        stream.take(chunk("stop"))

        match loss:
            case "cut":
                result = stream.cut()
            case "broken":
                result = stream.broken("no JSON")
            case _:
                result = stream.lost(None, Signal.STREAM_SILENCE_TIMEOUT)

        assert isinstance(result, Answer)

    def test_every_kind_of_piece_is_passed_on_and_kept(self) -> None:
        heard = Heard()

        said = answer(
            chunk(role="assistant", content=""),
            chunk(reasoning_content="Hm"),
            chunk(reasoning_content="m"),
            chunk(content="He"),
            chunk(content="llo"),
            chunk(refusal="No"),
            OPENED,
            piece('{"at":'),
            piece(" 1}"),
            chunk("tool_calls"),
            stream=reader(heard),
        )

        assert heard.begun == ["chatcmpl-1"]
        assert heard.pieces == [
            ("reasoning", "Hm"),
            ("reasoning", "m"),
            ("text", "He"),
            ("text", "llo"),
            ("refusal", "No"),
            ("tool_call", '{"at":'),
            ("tool_call", " 1}"),
        ]
        assert said.messages[0].parts == (
            Reasoning(text="Hmm", told_in="reasoning_content"),
            Text(text="Hello"),
            Refusal(text="No"),
            ToolCall(call_id="call_1", name="look", arguments='{"at": 1}'),
        )
        assert said.finish == "tool_calls"

    def test_thoughts_that_are_told_in_both_fields_are_told_once(self) -> None:
        said = answer(chunk(reasoning="Hm", reasoning_content="Hm"), chunk(reasoning="m"), HI, DONE)

        assert said.messages[0].parts[0] == Reasoning(text="Hmm", told_in="reasoning")

    def test_what_postgresql_cannot_store_is_replaced(self) -> None:
        heard = Heard()

        said = answer(chunk(content="a\0b"), DONE, stream=reader(heard))

        assert heard.pieces == [("text", "a\ufffdb")]
        assert said.messages[0].text == "a\ufffdb"

    def test_azures_first_chunk_about_its_filters_names_nothing(self) -> None:
        heard = Heard()
        first = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}

        said = answer(first, HI, chunk("stop"), stream=reader(heard))

        assert (heard.begun, said.model) == (["chatcmpl-1"], "m-2026")

    def test_nothing_is_kept_to_continue_from(self) -> None:
        assert not answer(OPENED, piece("{}"), chunk("tool_calls")).can_anchor


def noted(*pages: object) -> list[dict[str, Any]]:
    return [{"type": "url_citation", "url_citation": page} for page in pages]


PAGE = {"url": "https://example.org/", "title": "Rivers", "start_index": 0, "end_index": 2}
CITATION = Citation(url="https://example.org/", title="Rivers", start=0, end=2)


class TestCitations:
    @pytest.mark.parametrize(
        "events",
        [
            pytest.param([HI, chunk(annotations=noted(PAGE)), chunk("stop")], id="in a chunk of their own"),
            pytest.param([chunk("stop", content="Hi", annotations=noted(PAGE))], id="beside the words"),
            pytest.param(
                [chunk(content="Hi", annotations=noted(PAGE)), chunk("stop", annotations=noted(PAGE))],
                id="told twice",
            ),
            pytest.param([HI, messaged(annotations=noted(PAGE))], id="in the whole message at the end"),
        ],
    )
    def test_pages_are_kept_beside_the_words_that_rest_on_them(self, events: list[object]) -> None:
        assert answer(*events).messages[0].parts == (Text(text="Hi", citations=(CITATION,)),)

    def test_the_words_are_told_once_though_the_whole_message_follows(self) -> None:
        heard = Heard()

        answer(HI, messaged(content="Hi"), stream=reader(heard))

        assert heard.pieces == [("text", "Hi")]

    @pytest.mark.parametrize("annotations", ["none", [7], [{"type": "file_citation", "file_id": "f"}], noted("?")])
    def test_what_is_no_page_is_passed_over(self, annotations: object) -> None:
        assert answer(HI, chunk("stop", annotations=annotations)).messages[0].parts == (Text(text="Hi"),)


class TestToolCalls:
    @pytest.mark.parametrize(
        ("events", "calls"),
        [
            pytest.param(
                [OPENED, piece("{}", index=1, id="call_2", name="go"), piece("{}")],
                [("call_1", "look", "{}"), ("call_2", "go", "{}")],
                id="two that take turns",
            ),
            pytest.param(
                [piece("{}", id="call_1", name="look"), piece("[]", id="call_2", name="go")],
                [("call_1", "look", "{}"), ("call_2", "go", "[]")],
                id="two under one index",
            ),
            pytest.param(
                [piece("{", index=None, id="call_1", name="look"), piece("}", index=None)],
                [("call_1", "look", "{}")],
                id="one without an index",
            ),
            pytest.param(
                [piece("{", id="call_1", name="look"), piece("}", id="call_1", name="look")],
                [("call_1", "look", "{}")],
                id="one that repeats its name",
            ),
            pytest.param(
                [piece("{}", name="look")], [("call_chatcmpl-1_1", "look", "{}")], id="one without an id"
            ),
        ],
    )
    def test_pieces_become_calls(self, events: list[object], calls: list[tuple[str, str, str]]) -> None:
        said = answer(*events, chunk("tool_calls"))

        assert said.messages[0].parts == tuple(
            ToolCall(call_id=call_id, name=name, arguments=arguments) for call_id, name, arguments in calls
        )

    def test_a_reason_that_does_not_mention_them_finishes_them_all_the_same(self) -> None:
        assert answer(OPENED, piece("{}"), chunk("stop")).finish == "tool_calls"

    @pytest.mark.parametrize("finish", ["length", "content_filter", "weariness"])
    def test_half_a_call_is_left_out(self, finish: str) -> None:
        said = answer(HI, OPENED, piece('{"at'), chunk(finish))

        assert said.messages[0].parts == (Text(text="Hi"),)
        assert said.finish != "tool_calls"

    @pytest.mark.parametrize("end", [[], [DONE]], ids=["the end", "[DONE]"])
    def test_without_a_reason_a_call_may_be_half(self, end: list[object]) -> None:
        assert failed(HI, OPENED, piece("{}"), *end).failure.signal is Signal.STREAM_TRUNCATED


class TestFailures:
    @pytest.mark.parametrize(
        ("events", "signal", "kind", "retryable"),
        [
            pytest.param([], Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="nothing at all"),
            pytest.param([HI], Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="words without an end"),
            pytest.param([DONE], Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="[DONE] before a word"),
            pytest.param(
                [chunk("stop")], Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="a reason without a word"
            ),
            pytest.param(
                [chunk(content=" \n"), chunk("stop")],
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                True,
                id="white space alone",
            ),
            pytest.param(
                [chunk(reasoning="Hm"), chunk("stop")],
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                True,
                id="a thought alone",
            ),
            pytest.param(
                [chunk(reasoning="Hm"), chunk("length")],
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                False,
                id="an allowance that did not last for a word",
            ),
            pytest.param(
                [OPENED, piece('{"at'), chunk("length")],
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                False,
                id="an allowance that lasted for half a call",
            ),
            pytest.param(
                [chunk("content_filter")],
                Signal.CONTENT_FILTER,
                ErrorKind.CONTENT_FILTER,
                False,
                id="filtered before a word",
            ),
            pytest.param(
                [chunk("sensitive")],
                Signal.CONTENT_FILTER,
                ErrorKind.CONTENT_FILTER,
                False,
                id="filtered, in another vendor's word",
            ),
            pytest.param(
                [HI, {"error": {"code": 429, "message": "Slow down."}}, DONE],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.RATE_LIMIT,
                True,
                id="an error before [DONE]",
            ),
            pytest.param(
                [HI, chunk("error") | {"error": {"code": 502, "message": "Provider disconnected"}}],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.TIMEOUT,
                True,
                id="an error beside its reason, as OpenRouter does it",
            ),
            pytest.param(
                [HI, chunk("stop"), {"error": {"type": "server_error", "message": "Sorry."}}],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.GENERIC,
                True,
                id="an error after the reason",
            ),
            pytest.param(
                [HI, chunk("error"), DONE],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.GENERIC,
                True,
                id="only a reason: error",
            ),
            pytest.param(
                [HI, chunk("network_error"), DONE],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.TIMEOUT,
                True,
                id="only a reason: network_error",
            ),
            pytest.param(
                [HI, chunk("insufficient_system_resource")],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.OVERLOADED,
                True,
                id="only a reason: insufficient_system_resource",
            ),
            pytest.param([7], Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="an event that is no object"),
        ],
    )
    def test_anything_else_is_a_failure(
        self, events: list[object], signal: Signal, kind: ErrorKind, retryable: bool
    ) -> None:
        failure = failed(*events).failure

        assert failure.signal is signal
        error = classify(failure, now=NOW).error
        assert (error.kind, error.retryable) == (kind, retryable)

    def test_a_stream_that_was_cut_knows_how_far_it_came_and_what_it_cost(self) -> None:
        before = failed()
        after = failed(HI, {"choices": [], "usage": USAGE})

        assert (before.failure.phase, before.failure.visible) == (Phase.BEFORE_FIRST_EVENT, False)
        assert (after.failure.phase, after.failure.visible) == (Phase.MID_STREAM, True)
        assert (after.response_id, after.usage and after.usage["input_tokens"]) == ("chatcmpl-1", 7)


class TestUsage:
    @pytest.mark.parametrize(
        ("usage", "counted"),
        [
            pytest.param(
                {
                    "prompt_tokens": 10,
                    "prompt_tokens_details": {"cached_tokens": 8},
                    "completion_tokens": 5,
                    "completion_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": 15,
                },
                {
                    "input_tokens": 10,
                    "cached_tokens": 8,
                    "output_tokens": 5,
                    "reasoning_tokens": 0,
                    "total_tokens": 15,
                },
                id="everything",
            ),
            pytest.param({"prompt_tokens": 3}, {"input_tokens": 3}, id="what is absent stays absent"),
            pytest.param({"prompt_tokens_details": None}, None, id="absent is not zero"),
            pytest.param(None, None, id="none"),
        ],
    )
    def test_usage_is_flattened(self, usage: object, counted: dict[str, int] | None) -> None:
        assert answer(HI, chunk("stop"), {"choices": [], "usage": usage}, DONE).usage == counted

    def test_it_is_told_as_soon_as_it_is_known(self) -> None:
        heard = Heard()

        failed(HI, chunk() | {"usage": USAGE}, stream=reader(heard))

        assert heard.counts == [{"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}]


KEYS = [
    "id",
    "model",
    "choices",
    "delta",
    "content",
    "reasoning",
    "refusal",
    "tool_calls",
    "usage",
    "index",
    "function",
    "annotations",
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["stop", "length", "error"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=10,
)
objects = st.dictionaries(st.sampled_from(KEYS), anything, max_size=5)


@st.composite
def strange_events(draw: st.DrawFn) -> dict[str, object]:
    """Draw a chunk that has the shape of one, and anything in its places."""
    call = draw(objects) | {"function": draw(objects | anything)}
    delta = draw(objects) | {"tool_calls": [call]}
    choice = draw(objects) | {"delta": draw(st.just(delta) | anything), "finish_reason": draw(anything)}
    return draw(objects) | {"choices": [choice]}


@given(st.lists(strange_events() | anything | st.just(DONE), max_size=4))
def test_no_event_makes_it_raise(events: list[object]) -> None:
    result = told(*events)

    if isinstance(result, Failed):
        assert classify(result.failure, now=NOW).error.message


part_lists = st.lists(
    st.sampled_from([HI, OPENED, piece("{}"), chunk(reasoning="Hm"), chunk(refusal="No"), chunk(content="")]),
    max_size=6,
)


@given(part_lists, st.sampled_from([None, "stop", "tool_calls", "length", "content_filter", "error", "other"]))
def test_calls_are_never_executable_unless_they_were_finished(events: list[object], finish: str | None) -> None:
    result = told(*events, *([chunk(finish)] if finish else []), DONE)

    if isinstance(result, Answer):
        calls: list[Part] = [part for part in result.messages[0].parts if isinstance(part, ToolCall)]
        assert bool(calls) == (result.finish == "tool_calls")
        assert not calls or finish in {"stop", "tool_calls"}


later_fields = st.dictionaries(st.sampled_from(["mood", "phase", "obfuscation"]), anything, max_size=2)
later_choices = st.just([]) | st.builds(lambda rest: [{"index": 0, "delta": rest}], later_fields)
later_events = st.builds(
    lambda rest, choices: [{**rest, "object": "weather", "choices": choices}], later_fields, later_choices
)
EVERYTHING = [
    chunk(reasoning="Hm"),
    chunk(content="Hi", annotations=noted(PAGE)),
    OPENED,
    piece('{"at": 1}'),
    chunk("tool_calls"),
    {"choices": [], "usage": USAGE},
]


@given(sprinkled(EVERYTHING, later_events))
def test_what_a_later_version_adds_changes_nothing(events: list[object]) -> None:
    plain, strange = Heard(), Heard()

    assert answer(*events, DONE, stream=reader(strange)) == answer(*EVERYTHING, DONE, stream=reader(plain))
    assert strange == plain


@given(st.lists(later_fields, min_size=len(EVERYTHING), max_size=len(EVERYTHING)))
def test_fields_of_a_later_version_change_nothing(fields: list[dict[str, Any]]) -> None:
    events = [
        event | extra | {"choices": [{**one, **extra, "delta": one["delta"] | extra} for one in event["choices"]]}
        for event, extra in zip(EVERYTHING, fields, strict=True)
    ]

    assert answer(*events) == answer(*EVERYTHING)
