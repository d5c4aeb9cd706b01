"""Paused answers: the official `anthropic` package sends them back, and the model goes on."""

from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

Script = Callable[..., str]

PAUSE = {"type": "incomplete", "reason": "pause_turn", "text": "One two three four", "chunk_chars": 4}
PREFILL = "does not support assistant message prefill"


def send(claude: anthropic.Anthropic, messages: list[Any]) -> Message:
    return claude.messages.create(model="m", max_tokens=100, messages=messages)


def as_sent(message: Message) -> dict[str, Any]:
    return {"role": "assistant", "content": [block.to_dict() for block in message.content]}


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_paused_answer_is_continued_with_the_next_step(claude: anthropic.Anthropic, script: Script) -> None:
    asked = {
        "role": "user",
        "content": script({**PAUSE, "reasoning": "Hm"}, {"type": "answer", "text": "the rest"}),
    }

    paused = send(claude, [asked])
    rest = send(claude, [asked, as_sent(paused)])

    assert (paused.stop_reason, text_of(paused)) == ("pause_turn", "One two ")
    assert (rest.stop_reason, text_of(rest)) == ("end_turn", "the rest")


def test_after_its_last_step_a_script_says_the_plain_answer(claude: anthropic.Anthropic, script: Script) -> None:
    asked = {"role": "user", "content": script(PAUSE)}

    rest = send(claude, [asked, as_sent(send(claude, [asked]))])

    assert text_of(rest).startswith("I have read 1 user message.")


def test_a_pause_may_follow_a_pause(claude: anthropic.Anthropic, script: Script) -> None:
    asked = {"role": "user", "content": script(PAUSE, PAUSE, {"type": "answer", "text": "the rest"})}
    first = as_sent(send(claude, [asked]))
    second = as_sent(send(claude, [asked, first]))

    merged = {"role": "assistant", "content": [*first["content"], *second["content"]]}
    answers = [text_of(send(claude, [asked, *begun])) for begun in ([first, second], [merged])]

    assert answers[0] == "the rest"
    assert answers[1].startswith("I have read")


def test_what_was_paused_in_a_search_goes_on_with_what_it_found(
    claude: anthropic.Anthropic, script: Script
) -> None:
    step = {"type": "incomplete", "reason": "pause_turn", "search": "rivers", "in_search": True}
    asked = {"role": "user", "content": script(step, {"type": "answer", "text": "the rest"})}
    paused = send(claude, [asked])
    with claude.messages.stream(model="m", max_tokens=100, messages=[asked, as_sent(paused)]) as events:  # type: ignore[list-item]
        rest = events.get_final_message()

    last = send(claude, [asked, as_sent(paused), as_sent(rest), {"role": "user", "content": "Thanks"}])

    assert [block.type for block in paused.content] == ["server_tool_use"]
    assert [block.type for block in rest.content] == ["web_search_tool_result", "text"]
    assert as_sent(rest)["content"][0]["tool_use_id"] == as_sent(paused)["content"][0]["id"]
    assert last.stop_reason == "end_turn"


def test_nulls_may_be_left_out_of_what_is_sent_back(claude: anthropic.Anthropic, script: Script) -> None:
    asked = {"role": "user", "content": script({**PAUSE, "search": "rivers"})}
    begun = as_sent(send(claude, [asked]))
    for page in begun["content"][1]["content"]:
        del page["page_age"]

    assert send(claude, [asked, begun]).stop_reason == "end_turn"


@pytest.mark.parametrize(
    "step",
    [
        pytest.param({"type": "answer"}, id="an answer that was whole"),
        pytest.param({"type": "incomplete", "reason": "max_output_tokens"}, id="one that was too long"),
    ],
)
def test_what_was_not_paused_cannot_be_gone_on_with(
    claude: anthropic.Anthropic, script: Script, step: dict[str, Any]
) -> None:
    asked = {"role": "user", "content": script(step)}

    answered = as_sent(send(claude, [asked]))

    with pytest.raises(anthropic.BadRequestError, match=PREFILL):
        send(claude, [asked, answered])


def test_a_paused_answer_that_was_changed_is_refused(claude: anthropic.Anthropic, script: Script) -> None:
    asked = {"role": "user", "content": script(PAUSE)}
    begun = as_sent(send(claude, [asked]))
    begun["content"][0]["text"] += "!"

    with pytest.raises(anthropic.BadRequestError, match=PREFILL):
        send(claude, [asked, begun])


def test_another_account_cannot_go_on_with_it(
    claude: anthropic.Anthropic, second_claude: anthropic.Anthropic, script: Script
) -> None:
    asked = {"role": "user", "content": script(PAUSE)}
    begun = as_sent(send(claude, [asked]))

    with pytest.raises(anthropic.BadRequestError, match=PREFILL):
        send(second_claude, [asked, begun])
