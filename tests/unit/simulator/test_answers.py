"""What the model says: it must show whether the history was there."""

import pytest

from turnkeeper_ops.simulator.answers import default_answer, split
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
