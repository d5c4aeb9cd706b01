"""Novelties: what the official packages make of an answer of a version that they do not know."""

from typing import Any

import anthropic
import openai
import pytest

ANSWER = "I have read 1 user message. It says: “Hello sim:novel”."
SAID: Any = [{"role": "user", "content": "Hello sim:novel"}]


class TestResponses:
    def test_the_text_is_read_and_everything_else_is_handed_over(self, client: openai.OpenAI) -> None:
        with client.responses.create(model="m", input="Hello sim:novel", stream=True) as stream:
            events = list(stream)

        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
        assert {"response.novel", "response.output_novel.delta"} <= {event.type for event in events}
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == ANSWER
        assert [item.type for item in last.response.output] == ["novel_item", "message", "novel_item"]

    def test_the_packages_own_accumulator_reads_it_and_warns(self, client: openai.OpenAI) -> None:
        with (
            client.responses.stream(model="m", input="Hello sim:novel") as stream,
            pytest.warns(UserWarning, match="Pydantic serializer warnings"),
        ):
            final = stream.get_final_response()

        assert final.output_text == ANSWER

    def test_a_whole_response_is_read(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello sim:novel")

        assert response.output_text == ANSWER
        assert response.to_dict(warnings=False)["novel"] == {
            "type": "novelty",
            "levels": [{"index": 0, "of": None}],
        }

    def test_what_is_novel_can_be_sent_back_and_continued_from(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model="m", input="Hello sim:novel")
        replayed: Any = [
            *SAID,
            *(item.to_dict(warnings=False) for item in first.output),
            {"role": "user", "content": "Hm"},
        ]

        inline = client.responses.create(model="m", input=replayed)
        chained = client.responses.create(model="m", input="Hm", previous_response_id=first.id)

        assert "2 user messages" in inline.output_text
        assert inline.output_text == chained.output_text


class TestChat:
    def test_the_text_is_read_and_everything_else_is_handed_over(self, client: openai.OpenAI) -> None:
        with client.chat.completions.create(model="m", messages=SAID, stream=True) as stream:
            chunks = list(stream)

        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == ANSWER
        assert choices[-1].finish_reason == "stop"
        assert [] in [chunk.choices for chunk in chunks]

    def test_the_packages_own_accumulator_reads_it(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(model="m", messages=SAID) as stream:
            final = stream.get_final_completion()

        assert final.choices[0].message.content == ANSWER

    def test_a_whole_completion_is_read(self, client: openai.OpenAI) -> None:
        completion = client.chat.completions.create(model="m", messages=SAID)

        assert completion.choices[0].message.content == ANSWER


class TestMessages:
    def test_the_text_is_read_and_everything_else_is_handed_over(self, claude: anthropic.Anthropic) -> None:
        with claude.messages.create(model="m", max_tokens=100, messages=SAID, stream=True) as stream:
            events = list(stream)

        deltas = [event.delta for event in events if event.type == "content_block_delta"]
        assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == ANSWER
        assert "novel" in {event.type for event in events}
        assert "novel_delta" in {delta.type for delta in deltas}

    def test_the_packages_own_accumulator_reads_it(self, claude: anthropic.Anthropic) -> None:
        with claude.messages.stream(model="m", max_tokens=100, messages=SAID) as stream:
            final = stream.get_final_message()

        assert [block.type for block in final.content] == ["novel_block", "text", "novel_block"]
        assert final.stop_reason == "end_turn"

    def test_what_is_novel_can_be_sent_back(self, claude: anthropic.Anthropic) -> None:
        first = claude.messages.create(model="m", max_tokens=100, messages=SAID)
        replayed: Any = [
            *SAID,
            {"role": "assistant", "content": [block.to_dict() for block in first.content]},
            {"role": "user", "content": "Hm"},
        ]

        second = claude.messages.create(model="m", max_tokens=100, messages=replayed)

        assert "2 user messages" in str(second.content)


@pytest.mark.parametrize("fault", ["cut", "error_event", "drip"])
def test_a_novel_answer_suffers_faults_like_any_other(client: openai.OpenAI, script: Any, fault: str) -> None:
    said = script({"type": fault, "novel": True})
    seen: list[str] = []

    def read() -> None:
        with client.responses.create(model="m", input=said, stream=True) as stream:
            seen.extend(event.delta for event in stream if event.type == "response.output_text.delta")

    if fault == "drip":
        read()
        assert "".join(seen).startswith("I have read 1")
        return
    with pytest.raises(openai.APIError):
        read()
    assert len(seen) == 2
