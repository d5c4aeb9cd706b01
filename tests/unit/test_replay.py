"""Repair of a history: every call has exactly one result right after it, and every result its call."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)
from turnkeeper_worker.replay import INTERRUPTED, Reader, Said, readable_by, repair


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def assistant(*parts: Part) -> Message:
    return Message(role="assistant", parts=parts)


def call(call_id: str) -> ToolCall:
    return ToolCall(call_id=call_id, name="look", arguments="{}")


def result(call_id: str, output: str = "sunny") -> ToolResult:
    return ToolResult(call_id=call_id, output=output)


def interrupted(call_id: str) -> ToolResult:
    return ToolResult(call_id=call_id, output=INTERRUPTED, is_error=True)


HELLO = Text(text="Hello")


@pytest.mark.parametrize(
    ("history", "repaired"),
    [
        pytest.param([], [], id="nothing stays nothing"),
        pytest.param([user(HELLO), assistant(HELLO)], [user(HELLO), assistant(HELLO)], id="what is whole stays"),
        pytest.param(
            [assistant(call("1")), user(result("1"))],
            [assistant(call("1")), user(result("1"))],
            id="a pair stays",
        ),
        pytest.param(
            [assistant(call("1"))],
            [assistant(call("1")), user(interrupted("1"))],
            id="a call at the end was interrupted",
        ),
        pytest.param(
            [assistant(call("1")), user(HELLO)],
            [assistant(call("1")), user(interrupted("1"), HELLO)],
            id="the user went on instead",
        ),
        pytest.param(
            [assistant(call("1")), assistant(HELLO)],
            [assistant(call("1")), user(interrupted("1")), assistant(HELLO)],
            id="the model went on instead",
        ),
        pytest.param(
            [assistant(call("1"), call("2")), user(result("2"))],
            [assistant(call("1"), call("2")), user(result("2"), interrupted("1"))],
            id="one of two was interrupted",
        ),
        pytest.param(
            [assistant(call("1")), user(HELLO, result("1"))],
            [assistant(call("1")), user(result("1"), HELLO)],
            id="the result comes before the words",
        ),
        pytest.param(
            [assistant(call("1"), call("2")), user(result("1")), user(HELLO, result("2"))],
            [assistant(call("1"), call("2")), user(result("1"), result("2"), HELLO)],
            id="our result, then the producer's",
        ),
        pytest.param(
            [assistant(call("0")), user(result("0", "a")), assistant(call("0")), user(result("0", "b"))],
            [assistant(call("0")), user(result("0", "a")), assistant(call("0_2")), user(result("0_2", "b"))],
            id="a server that counts its calls anew in every answer",
        ),
        pytest.param([user(result("1"), HELLO)], [user(HELLO)], id="a result without its call goes"),
        pytest.param(
            [assistant(call("1")), user(result("1", "a"), result("1", "b"))],
            [assistant(call("1")), user(result("1", "a"))],
            id="the first of two results counts",
        ),
        pytest.param([assistant(call(""))], [], id="a call without an id cannot be answered"),
        pytest.param([user(Text(text="")), assistant()], [], id="empty messages go"),
        pytest.param([assistant(Text(text=""), HELLO)], [assistant(HELLO)], id="empty texts go"),
    ],
)
def test_what_a_provider_would_refuse_is_mended(history: list[Message], repaired: list[Message]) -> None:
    assert list(repair(history)) == repaired


def test_the_results_of_calls_before_the_history_are_awaited() -> None:
    history = [user(result("1"))]

    assert repair(history, answered=["1"]) == (user(result("1")),)
    assert repair([user(HELLO)], answered=["1"]) == (user(interrupted("1"), HELLO),)
    assert repair(history) == ()


call_ids = st.sampled_from(["", "1", "2", "3"])
texts = st.sampled_from(["", "Hello"])
user_parts = st.one_of(
    st.builds(Text, text=texts),
    st.builds(Image, url=texts),
    st.builds(ToolResult, call_id=call_ids, output=texts),
)
assistant_parts = st.one_of(
    st.builds(Text, text=texts),
    st.builds(Reasoning, encrypted=texts),
    st.builds(ToolCall, call_id=call_ids, name=texts, arguments=texts),
    st.builds(WebSearch),
    st.builds(Refusal, text=texts),
)
histories = st.lists(
    st.one_of(
        st.lists(user_parts, max_size=4).map(lambda parts: user(*parts)),
        st.lists(assistant_parts, max_size=4).map(lambda parts: assistant(*parts)),
    ),
    max_size=8,
)


def calls(message: Message) -> list[str]:
    return [part.call_id for part in message.parts if isinstance(part, ToolCall)]


def results(message: Message) -> list[str]:
    return [part.call_id for part in message.parts if isinstance(part, ToolResult)]


@given(histories)
def test_every_call_has_exactly_one_result_in_the_next_message_and_before_its_words(
    history: list[Message],
) -> None:
    repaired = [*repair(history), user()]

    for message, following in pairwise(repaired):
        if message.role == "assistant":
            assert sorted(calls(message)) == sorted(results(following)) == sorted(set(calls(message)))
            kinds = [isinstance(part, ToolResult) for part in following.parts]
            assert kinds == sorted(kinds, reverse=True)


@given(histories)
def test_no_result_is_an_orphan_and_no_message_is_empty(history: list[Message]) -> None:
    repaired = [user(), *repair(history)]

    for before, message in pairwise(repaired):
        assert message.parts
        assert set(results(message)) <= set(calls(before))


@given(histories)
def test_a_repaired_history_needs_no_repair(history: list[Message]) -> None:
    once = repair(history)

    assert repair(once) == once


@given(histories)
def test_no_words_are_lost_or_moved(history: list[Message]) -> None:
    def words(messages: list[Message] | tuple[Message, ...]) -> list[Part]:
        dropped = ToolCall | ToolResult
        return [
            part
            for message in messages
            for part in message.parts
            if not isinstance(part, dropped) and part != Text(text="")
        ]

    assert words(repair(history)) == words(history)


class TestForeignThoughts:
    THOUGHT = Reasoning(encrypted="gAAAAA")

    def test_another_providers_thoughts_are_left_out_and_its_words_stay(self) -> None:
        history = [Said(assistant(self.THOUGHT, HELLO), "anthropic"), Said(user(HELLO))]

        assert readable_by(history, Reader("openai", "seal")) == (assistant(HELLO), user(HELLO))

    def test_its_own_thoughts_stay(self) -> None:
        history = [Said(assistant(self.THOUGHT, HELLO), "openai")]

        assert readable_by(history, Reader("openai", "seal")) == (assistant(self.THOUGHT, HELLO),)
