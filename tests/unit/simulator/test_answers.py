"""What the model says: it must show whether the history was there."""

import pytest

from turnkeeper_ops.simulator.answers import compose, default_answer, split
from turnkeeper_ops.simulator.scripts import AnswerStep, FunctionCall, IncompleteStep
from turnkeeper_ops.simulator.wire import Prompt


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        pytest.param((), "I have read no user message.", id="none"),
        pytest.param(("Hi",), "I have read 1 user message. It says: “Hi”.", id="one"),
        pytest.param(
            ("Hi", "x", "And\nnow?"),
            "I have read 3 user messages. The first says: “Hi”. The last says: “And now?”.",
            id="several",
        ),
    ],
)
def test_the_default_answer_tells_what_was_read(texts: tuple[str, ...], answer: str) -> None:
    prompt = Prompt(user_texts=texts, tool_outputs=(), input_tokens=0, cached_tokens=0, chained=False)

    assert default_answer(prompt) == answer


def test_the_default_answer_tells_what_tools_returned_and_quotes_no_more_than_a_line() -> None:
    prompt = Prompt(
        user_texts=("x" * 1000,), tool_outputs=("sunny",), input_tokens=0, cached_tokens=0, chained=False
    )

    answer = default_answer(prompt)

    assert answer.endswith("A tool returned: “sunny”.")
    assert len(answer) < 200


@pytest.mark.parametrize(("text", "pieces"), [("", ()), ("ab", ("ab",)), ("abcde", ("ab", "cd", "e"))])
def test_text_is_split_into_chunks(text: str, pieces: tuple[str, ...]) -> None:
    assert split(text, 2) == pieces


NOBODY = Prompt(user_texts=(), tool_outputs=(), input_tokens=0, cached_tokens=0, chained=False)
CALLS = (FunctionCall(name="f", arguments="abcd"), FunctionCall(name="g", arguments="efgh"))


def test_arguments_are_split_as_text_is() -> None:
    reply = compose(AnswerStep(calls=CALLS, chunk_chars=3), NOBODY)

    assert [call.pieces for call in reply.calls] == [("abc", "d"), ("efg", "h")]
    assert [call.arguments for call in reply.calls] == ["abcd", "efgh"]


@pytest.mark.parametrize(
    ("at", "chunks", "calls"),
    [
        pytest.param(0, (), [], id="nothing"),
        pytest.param(1, ("Hi",), [], id="some text"),
        pytest.param(3, ("Hi", "!"), [("ab", False)], id="half a call"),
        pytest.param(5, ("Hi", "!"), [("abcd", True), ("ef", False)], id="a call and a half"),
        pytest.param(9, ("Hi", "!"), [("abcd", True), ("efgh", True)], id="more than there is"),
    ],
)
def test_an_answer_that_stops_early_keeps_its_first_chunks(
    at: int, chunks: tuple[str, ...], calls: list[tuple[str, bool]]
) -> None:
    reply = compose(IncompleteStep(text="Hi!", calls=CALLS, chunk_chars=2, at=at), NOBODY)

    assert (reply.chunks, reply.stopped) == (chunks, "max_output_tokens")
    assert [(call.arguments, call.whole) for call in reply.calls] == calls
