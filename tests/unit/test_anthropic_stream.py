"""The end of an Anthropic message: a stop reason and `message_stop`; nothing else is an answer."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ErrorKind
from turnkeeper.messages import Citation, Part, Reasoning, Source, Text, ToolCall, WebSearch
from turnkeeper_worker.failures import Phase, Signal, classify
from turnkeeper_worker.providers.anthropic_messages import MessagesStream, read_usage
from turnkeeper_worker.providers.interface import Failed

from .streams import Heard, Judge, sprinkled

NOW = datetime(2026, 3, 1, tzinfo=UTC)
Events = list[dict[str, Any]]


def reader(heard: Heard | None = None, *, threads: bool = False) -> MessagesStream:
    return MessagesStream(listener=heard or Heard(), provider="anthropic", is_kept=threads)


judge = Judge(reader)
told, answer, failed = judge.told, judge.answer, judge.failed


def block(kind: str, *deltas: dict[str, Any], index: int = 0, is_open: bool = False, **start: Any) -> Events:
    """Return the events of one content block."""
    opened: dict[str, Any] = {
        "type": "content_block_start",
        "index": index,
        "content_block": {"type": kind} | start,
    }
    pieces = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [opened, *pieces, *([] if is_open else [{"type": "content_block_stop", "index": index}])]


def words(*pieces: str, index: int = 0) -> Events:
    return block("text", *({"type": "text_delta", "text": piece} for piece in pieces), index=index, text="")


def thought(text: str, signature: str, index: int = 0) -> Events:
    deltas = ({"type": "thinking_delta", "thinking": text}, {"type": "signature_delta", "signature": signature})
    return block("thinking", *deltas, index=index, thinking="", signature="")


def call(*pieces: str, **rest: Any) -> Events:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block("tool_use", *deltas, **({"id": "toolu_1", "name": "look", "input": {}} | rest))


START: dict[str, Any] = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "claude-2026", "usage": {"input_tokens": 7, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}
FOUND = {
    "type": "web_search_result",
    "url": "https://example.org/",
    "title": "Rivers",
    "page_age": "May 1",
    "encrypted_content": "ZW5j",
}
SOURCE = Source(url="https://example.org/", title="Rivers", age="May 1", encrypted="ZW5j")
HI = words("Hi")


def reason(name: object, **delta: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": name} | delta, "usage": {"output_tokens": 3}}


def whole(*parts: Events, stop: object = "end_turn", **delta: Any) -> Events:
    return [START, *(event for part in parts for event in part), reason(stop, **delta), STOP]


class TestAnswers:
    @pytest.mark.parametrize(
        ("stop", "finish"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("max_tokens", "max_output_tokens"),
            ("pause_turn", "pause_turn"),
            ("refusal", "refusal"),
            ("model_context_window_exceeded", "model_context_window_exceeded"),
            pytest.param("weariness", "weariness", id="a reason that nobody knows"),
            pytest.param("tool_use", "stop", id="tools that were only announced"),
        ],
    )
    def test_words_are_kept_whatever_ended_them(self, stop: str, finish: str) -> None:
        said = answer(*whole(HI, stop=stop))

        assert said.messages[0].parts == (Text(text="Hi"),)
        assert (said.response_id, said.model, said.finish) == ("msg_1", "claude-2026", finish)
        assert said.usage == {"input_tokens": 7, "output_tokens": 3}
        assert not said.can_anchor

    def test_every_kind_of_piece_is_passed_on(self) -> None:
        heard = Heard()
        search = block(
            "server_tool_use",
            {"type": "input_json_delta", "partial_json": '{"query": "rivers"}'},
            index=1,
            id="srvtoolu_1",
            name="web_search",
        )

        told(
            *whole(
                thought("Hm", "c2Vh"),
                search,
                words("He", "llo", index=2),
                call('{"at":', " 1}", index=3),
                stop="tool_use",
            ),
            stream=reader(heard),
        )

        assert heard.begun == ["msg_1"]
        assert heard.pieces == [
            ("reasoning", "Hm"),
            ("text", "He"),
            ("text", "llo"),
            ("tool_call", '{"at":'),
            ("tool_call", " 1}"),
        ]

    def test_a_message_that_asks_for_tools_says_so(self) -> None:
        said = answer(*whole(HI, call('{"at": 1}', index=1), stop="tool_use"))

        assert said.finish == "tool_calls"
        assert said.messages[0].parts[1] == ToolCall(call_id="toolu_1", name="look", arguments='{"at": 1}')

    @pytest.mark.parametrize("stop", ["max_tokens", "refusal", "model_context_window_exceeded"])
    def test_half_a_call_is_left_out(self, stop: str) -> None:
        said = answer(*whole(HI, call('{"at', index=1), stop=stop))

        assert said.messages[0].parts == (Text(text="Hi"),)

    def test_a_pause_needs_no_words(self) -> None:
        search = block("server_tool_use", id="srvtoolu_1", name="web_search", input={"query": "rivers"})

        said = answer(*whole(search, stop="pause_turn"))

        assert said.finish == "pause_turn"
        assert isinstance(said.messages[0].parts[0], WebSearch)

    def test_what_a_search_found_after_a_pause_is_kept_under_its_id(self) -> None:
        found = block("web_search_tool_result", tool_use_id="srvtoolu_1", content=[FOUND])

        said = answer(*whole(found, words("Hi", index=1)))

        assert said.messages[0].parts == (WebSearch(id="srvtoolu_1", sources=(SOURCE,)), Text(text="Hi"))

    def test_a_search_that_failed_after_a_pause_leaves_nothing(self) -> None:
        failure = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
        found = block("web_search_tool_result", tool_use_id="srvtoolu_1", content=failure)

        assert answer(*whole(found, words("Hi", index=1))).messages[0].parts == (Text(text="Hi"),)

    def test_the_words_of_the_provider_about_blocks_of_its_own_are_not_passed_on(self) -> None:
        heard = Heard()
        later = block("hologram", {"type": "text_delta", "text": "?"}, {"type": "input_json_delta"}, index=7)

        answer(*whole(HI, later), stream=reader(heard))

        assert heard.pieces == [("text", "Hi")]


class TestThreads:
    """The next message may continue from one that the API has kept to its proper end."""

    @pytest.mark.parametrize(
        ("stop", "can_anchor"),
        [
            ("end_turn", True),
            ("stop_sequence", True),
            ("tool_use", True),
            ("max_tokens", False),
            ("pause_turn", False),
            ("refusal", False),
            ("model_context_window_exceeded", False),
            ("weariness", False),
        ],
    )
    def test_only_a_message_that_was_ended_is_an_anchor(self, stop: str, can_anchor: bool) -> None:
        assert answer(*whole(HI, stop=stop), stream=reader(threads=True)).can_anchor is can_anchor

    def test_open_calls_are_an_anchor_for_their_results(self) -> None:
        said = answer(*whole(HI, call("{}", index=1), stop="tool_use"), stream=reader(threads=True))

        assert (said.finish, said.can_anchor) == ("tool_calls", True)

    def test_without_an_id_there_is_nothing_to_continue_from(self) -> None:
        assert not answer(*HI, reason("end_turn"), STOP, stream=reader(threads=True)).can_anchor

    def test_what_another_model_wrote_in_its_place_is_in_no_thread(self) -> None:
        end = reason("end_turn")
        end["usage"]["iterations"] = [{"type": "message"}, {"type": "fallback_message"}]

        assert not answer(START, *HI, end, STOP, stream=reader(threads=True)).can_anchor


class TestFailures:
    @pytest.mark.parametrize(
        ("events", "signal", "kind", "retryable"),
        [
            pytest.param([], Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="nothing at all"),
            pytest.param([START, *HI], Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="no end"),
            pytest.param(
                [START, *HI, reason("end_turn")],
                Signal.STREAM_TRUNCATED,
                ErrorKind.TIMEOUT,
                True,
                id="a reason without message_stop",
            ),
            pytest.param(
                [START, *HI, STOP],
                Signal.STREAM_TRUNCATED,
                ErrorKind.TIMEOUT,
                True,
                id="message_stop without a reason",
            ),
            pytest.param(
                whole(HI, stop=None), Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="a reason that is null"
            ),
            pytest.param(
                whole(call("{", is_open=True), stop="tool_use"),
                Signal.STREAM_TRUNCATED,
                ErrorKind.TIMEOUT,
                True,
                id="a call that was not ended",
            ),
            pytest.param(
                [START, {"type": "content_block_delta", "index": 4, "delta": {"type": "text_delta", "text": "?"}}],
                Signal.STREAM_TRUNCATED,
                ErrorKind.TIMEOUT,
                True,
                id="a delta of no block",
            ),
            pytest.param(
                [START, *HI, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.OVERLOADED,
                True,
                id="an error event",
            ),
            pytest.param(
                [{"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down."}}],
                Signal.SSE_ERROR_EVENT,
                ErrorKind.RATE_LIMIT,
                True,
                id="an error event before all",
            ),
            pytest.param(whole(), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="no block"),
            pytest.param(whole(words("\n")), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="white space alone"),
            pytest.param(
                whole(thought("Hm", "c2Vh")), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="a thought alone"
            ),
            pytest.param(
                whole(stop="pause_turn"), Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True, id="an empty pause"
            ),
            pytest.param(
                whole(thought("Hm", "c2Vh"), stop="max_tokens"),
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                False,
                id="an allowance that did not last for a word",
            ),
            pytest.param(
                whole(call('{"at'), stop="max_tokens"),
                Signal.EMPTY_OUTPUT,
                ErrorKind.GENERIC,
                False,
                id="an allowance that lasted for half a call",
            ),
            pytest.param(
                whole(stop="model_context_window_exceeded"),
                Signal.EMPTY_OUTPUT,
                ErrorKind.CONTEXT_OVERFLOW,
                False,
                id="a window that was full before a word",
            ),
            pytest.param(
                whole(stop="refusal", stop_details={"type": "refusal", "category": "bio"}),
                Signal.CONTENT_FILTER,
                ErrorKind.CONTENT_FILTER,
                False,
                id="refused before a word",
            ),
            pytest.param(
                "ping", Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True, id="an event that is no object"
            ),
        ],
    )
    def test_anything_else_is_a_failure(
        self, events: list[object], signal: Signal, kind: ErrorKind, retryable: bool
    ) -> None:
        failure = failed(*events).failure

        assert failure.signal is signal
        error = classify(failure, now=NOW).error
        assert (error.kind, error.retryable) == (kind, retryable)

    def test_a_refusal_tells_its_reason(self) -> None:
        details = {"type": "refusal", "category": "cyber", "explanation": "It could harm."}

        failure = failed(*whole(stop="refusal", stop_details=details)).failure

        assert classify(failure, now=NOW).error.detail == "It could harm."

    def test_a_message_that_breaks_off_has_cost_its_input(self) -> None:
        cut = failed(START, *words("Hi"))
        after_an_error = failed(START, {"type": "error", "error": {"type": "api_error"}})

        assert (cut.response_id, cut.usage) == ("msg_1", {"input_tokens": 7, "output_tokens": 1})
        assert after_an_error.usage == cut.usage
        assert (cut.failure.phase, cut.failure.visible) == (Phase.MID_STREAM, True)

    def test_a_stream_that_was_only_opened_has_cost_nothing_that_we_know_of(self) -> None:
        nothing = failed()

        assert (nothing.usage, nothing.failure.phase) == (None, Phase.BEFORE_FIRST_EVENT)


CITED: dict[str, Any] = {
    "type": "citations_delta",
    "citation": {
        "type": "web_search_result_location",
        "url": "https://example.org/",
        "title": "Rivers",
        "cited_text": "Rivers are wide.",
        "encrypted_index": "ZW5j",
    },
}
CITATION = Citation(url="https://example.org/", title="Rivers", quote="Rivers are wide.")
SEARCH = block("server_tool_use", id="srvtoolu_1", name="web_search", input={"query": "rivers"})


class TestBlocks:
    @pytest.mark.parametrize(
        ("blocks", "parts"),
        [
            pytest.param(words("He", "llo"), [Text(text="Hello")], id="words"),
            pytest.param(block("text", text="Hello"), [Text(text="Hello")], id="words that came whole"),
            pytest.param(thought("Hm", "c2Vh"), [Reasoning(text="Hm", signature="c2Vh")], id="a thought"),
            pytest.param(
                block("thinking", {"type": "signature_delta", "signature": "c2Vh"}, thinking=""),
                [Reasoning(signature="c2Vh")],
                id="a thought that is kept back",
            ),
            pytest.param(
                thought("H\0m", "c2Vh"), [Reasoning(text="H\ufffdm")], id="a thought that its seal no longer fits"
            ),
            pytest.param(
                block("redacted_thinking", data="ZGF0YQ"), [Reasoning(redacted="ZGF0YQ")], id="a redacted thought"
            ),
            pytest.param(
                call(), [ToolCall(call_id="toolu_1", name="look", arguments="{}")], id="a call without arguments"
            ),
            pytest.param(
                call(input={"at": 1}),
                [ToolCall(call_id="toolu_1", name="look", arguments='{"at": 1}')],
                id="a call that came whole",
            ),
            pytest.param(
                [
                    *SEARCH,
                    *block(
                        "web_search_tool_result",
                        index=1,
                        tool_use_id="srvtoolu_1",
                        content=[FOUND],
                    ),
                ],
                [WebSearch(id="srvtoolu_1", action={"type": "search", "query": "rivers"}, sources=(SOURCE,))],
                id="a search and what it found",
            ),
            pytest.param(
                [
                    *SEARCH,
                    *block(
                        "web_search_tool_result",
                        index=1,
                        tool_use_id="srvtoolu_1",
                        content={"type": "web_search_tool_result_error", "error_code": "too_many_requests"},
                    ),
                ],
                [WebSearch(id="srvtoolu_1", action={"type": "search", "query": "rivers"})],
                id="a search that failed",
            ),
            pytest.param(
                block("server_tool_use", id="srvtoolu_2", name="code_execution"), [], id="no place for it"
            ),
            pytest.param(block("hologram", data="…"), [], id="a block of a later version"),
            pytest.param(
                block("text", CITED, {"type": "text_delta", "text": "Wide"}, CITED, text=""),
                [Text(text="Wide", citations=(CITATION, CITATION))],
                id="words that rest on pages",
            ),
            pytest.param(
                block("text", text="Wide", citations=[CITED["citation"]]),
                [Text(text="Wide", citations=(CITATION,))],
                id="words that came whole with their page",
            ),
            pytest.param(
                [*words("A ", index=0), *block("text", CITED, text="wide", index=1), *words(" one", index=2)],
                [Text(text="A "), Text(text="wide", citations=(CITATION,)), Text(text=" one")],
                id="words split where their pages begin and end",
            ),
            pytest.param(
                block(
                    "text",
                    {"type": "citations_delta", "citation": {"type": "char_location", "url": "file:///a"}},
                    {"type": "citations_delta", "citation": "a page"},
                    {"type": "citations_delta"},
                    text="Wide",
                    citations="none",
                ),
                [Text(text="Wide")],
                id="words that rest on what is no page",
            ),
        ],
    )
    def test_blocks_become_parts(self, blocks: Events, parts: list[Part]) -> None:
        said = answer(*whole(blocks, words("Bye", index=9), stop="tool_use"))

        assert list(said.messages[0].parts) == [*parts, Text(text="Bye")]

    def test_blocks_are_told_apart_by_their_index(self) -> None:
        first, second = words("a", "b"), words("x", "y", index=1)
        mixed = [event for pair in zip(first, second, strict=True) for event in pair]

        assert answer(*whole(mixed)).messages[0].parts == (Text(text="ab"), Text(text="xy"))


class TestUsage:
    @pytest.mark.parametrize(
        ("usage", "counted"),
        [
            pytest.param(
                {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 100,
                    "cache_read_input_tokens": 1000,
                    "output_tokens": 5,
                    "output_tokens_details": {"thinking_tokens": 2},
                },
                {
                    "input_tokens": 1110,
                    "cache_write_tokens": 100,
                    "cached_tokens": 1000,
                    "output_tokens": 5,
                    "reasoning_tokens": 2,
                },
                id="input is what was read, what was cached and what came from the cache",
            ),
            pytest.param({"output_tokens": 0}, {"output_tokens": 0}, id="what is absent stays absent"),
            pytest.param({}, None, id="absent is not zero"),
            pytest.param("many", None, id="no object"),
        ],
    )
    def test_usage_is_brought_into_our_words(self, usage: object, counted: dict[str, int] | None) -> None:
        assert read_usage(usage) == counted

    def test_the_last_count_is_the_sum_and_what_it_leaves_out_stays(self) -> None:
        more = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": None, "output_tokens": 2}}

        said = answer(START, *words("Hi"), more, reason("end_turn"), STOP)

        assert said.usage == {"input_tokens": 7, "output_tokens": 3}

    def test_it_is_told_as_soon_as_it_is_known(self) -> None:
        heard = Heard()

        failed(START, *words("Hi"), stream=reader(heard))
        assert heard.counts == [{"input_tokens": 7, "output_tokens": 1}]

        answer(*whole(HI), stream=reader(heard))
        assert heard.counts[-1] == {"input_tokens": 7, "output_tokens": 3}


KEYS = [
    *("type", "index", "message", "delta", "usage", "content_block", "id", "name", "input", "text", "thinking"),
    *("signature", "partial_json", "stop_reason", "content", "tool_use_id", "data", "url"),
]
NAMES = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]
KINDS = [
    *("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"),
    *("text_delta", "thinking_delta", "signature_delta", "input_json_delta"),
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.text(max_size=3) | st.sampled_from([*KINDS, "end_turn"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=10,
)
objects = st.dictionaries(st.sampled_from(KEYS), anything, max_size=5)


@st.composite
def strange_events(draw: st.DrawFn) -> dict[str, object]:
    """Draw an event that has the shape of one, and anything in its places."""
    kind = st.sampled_from(KINDS)
    return draw(objects) | {
        "type": draw(st.sampled_from(NAMES)),
        "index": draw(st.integers(0, 1) | anything),
        "content_block": draw(objects) | {"type": draw(kind)},
        "delta": draw(objects)
        | {"type": draw(kind | anything), "stop_reason": draw(st.just("end_turn") | anything)},
    }


@given(st.lists(strange_events() | anything, max_size=6))
def test_no_event_makes_it_raise(events: list[object]) -> None:
    result = told(*events)

    if isinstance(result, Failed):
        assert classify(result.failure, now=NOW).error.message


LATER_KEYS = ["mood", "phase", "obfuscation"]
later_fields = st.dictionaries(st.sampled_from(LATER_KEYS), anything, max_size=2)
later_types = st.sampled_from(["ping", "content_block_sparkle", "message_phase", "weather"])
later_events = st.builds(lambda kind, rest: [{**rest, "type": kind}], later_types, objects)
later_deltas = st.builds(
    lambda index, rest: [{"type": "content_block_delta", "index": index, "delta": {**rest, "type": "glow_delta"}}],
    st.integers(0, 9),
    objects,
)
later_blocks = st.builds(
    lambda delta, rest: block("hologram", {"text": "?", **rest, "type": delta}, index=70, **rest),
    st.sampled_from(["text_delta", "thinking_delta", "input_json_delta", "citations_delta", "glow_delta"]),
    later_fields,
)
EVERYTHING = whole(
    thought("Hm", "c2Vh"),
    block("text", {"type": "text_delta", "text": "Hi"}, CITED, index=1, text=""),
    call('{"at": 1}', index=2),
    stop="tool_use",
)


@given(sprinkled(EVERYTHING, later_events | later_deltas | later_blocks))
def test_what_a_later_version_adds_changes_nothing(events: list[object]) -> None:
    plain, strange = Heard(), Heard()

    assert answer(*events, stream=reader(strange)) == answer(*EVERYTHING, stream=reader(plain))
    assert strange == plain


@given(st.lists(later_fields, min_size=len(EVERYTHING), max_size=len(EVERYTHING)))
def test_fields_of_a_later_version_change_nothing(fields: list[dict[str, Any]]) -> None:
    events = [
        event
        | extra
        | {name: event[name] | extra for name in ("message", "content_block", "delta") if name in event}
        for event, extra in zip(EVERYTHING, fields, strict=True)
    ]

    assert answer(*events) == answer(*EVERYTHING)
