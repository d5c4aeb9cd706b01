"""Accounts: what was said to one API key cannot be read, continued or sent back with another."""

from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

Script = Callable[..., str]

THOUGHTFUL = {"type": "answer", "reasoning": "Hm", "search": "rivers"}


def replayed(client: openai.OpenAI, said: str) -> list[Any]:
    """Ask without a store, and return the conversation as it is sent back."""
    first = client.responses.create(model="m", input=said, store=False, include=["reasoning.encrypted_content"])
    return [
        {"role": "user", "content": said},
        *(item.to_dict() for item in first.output),
        {"role": "user", "content": "And now?"},
    ]


def sent_back(claude: anthropic.Anthropic, said: str) -> list[Any]:
    first = claude.messages.create(model="m", max_tokens=100, messages=[{"role": "user", "content": said}])
    return [
        {"role": "user", "content": said},
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": "And now?"},
    ]


class TestResponses:
    def test_encrypted_reasoning_is_taken_back_from_its_own_account(
        self, client: openai.OpenAI, script: Script
    ) -> None:
        conversation = replayed(client, script(THOUGHTFUL))

        assert "2 user messages" in client.responses.create(model="m", input=conversation, store=False).output_text

    def test_encrypted_reasoning_of_another_account_is_refused(
        self, client: openai.OpenAI, second_client: openai.OpenAI, script: Script
    ) -> None:
        conversation = replayed(client, script(THOUGHTFUL))

        with pytest.raises(openai.BadRequestError, match="could not be verified") as caught:
            second_client.responses.create(model="m", input=conversation, store=False)

        assert caught.value.code == "invalid_encrypted_content"

    def test_all_encrypted_content_may_be_refused_once(self, client: openai.OpenAI, script: Script) -> None:
        text = script(
            THOUGHTFUL, {"type": "lost_anchor", "spelling": "invalid_encrypted_content", "even_unchained": True}
        )
        conversation = replayed(client, text)[:-1]
        asked: Any = [conversation[0], *conversation]

        client.responses.create(model="m", input=asked, store=False)
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input=asked, store=False)

        assert caught.value.code == "invalid_encrypted_content"
        assert client.responses.create(model="m", input=asked, store=False).status == "completed"

    def test_what_is_stored_for_one_account_is_not_there_for_another(
        self, client: openai.OpenAI, second_client: openai.OpenAI
    ) -> None:
        first = client.responses.create(model="m", input="Hello")

        with pytest.raises(openai.NotFoundError):
            second_client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            second_client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            second_client.responses.create(model="m", input="x", previous_response_id=first.id)

        assert caught.value.code == "previous_response_not_found"
        assert client.responses.retrieve(first.id).id == first.id

    def test_a_refused_seal_leaves_the_chain_alone(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "lost_anchor", "spelling": "invalid_encrypted_content"})
        first = client.responses.create(model="m", input="Hello")

        with pytest.raises(openai.BadRequestError, match="could not be verified"):
            client.responses.create(model="m", input=said, previous_response_id=first.id)

        again = client.responses.create(model="m", input=said, previous_response_id=first.id)
        assert "2 user messages" in again.output_text


class TestMessages:
    def test_thoughts_and_searches_are_taken_back_from_their_own_account(
        self, claude: anthropic.Anthropic, script: Script
    ) -> None:
        conversation = sent_back(claude, script(THOUGHTFUL))

        assert claude.messages.create(model="m", max_tokens=100, messages=conversation).stop_reason == "end_turn"

    @pytest.mark.parametrize(
        ("step", "words"),
        [
            pytest.param({"reasoning": "Hm"}, "Invalid `signature` in `thinking` block", id="a thought"),
            pytest.param(
                {"reasoning": "Hm", "redacted": True},
                "Invalid `data` in `redacted_thinking` block",
                id="a thought that is not shown",
            ),
            pytest.param(
                {"search": "rivers"}, "Invalid `encrypted_content` in `web_search_result` block", id="a search"
            ),
        ],
    )
    def test_those_of_another_account_are_refused(
        self,
        claude: anthropic.Anthropic,
        second_claude: anthropic.Anthropic,
        script: Script,
        step: dict[str, Any],
        words: str,
    ) -> None:
        conversation = sent_back(claude, script({"type": "answer", **step}))

        with pytest.raises(anthropic.BadRequestError, match=words):
            second_claude.messages.create(model="m", max_tokens=100, messages=conversation)

    def test_all_signatures_may_be_refused_once(self, claude: anthropic.Anthropic) -> None:
        asked: Any = {
            "model": "m",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Hi sim:lost-seal"}],
        }

        with pytest.raises(anthropic.BadRequestError, match="Invalid `signature` in `thinking` block"):
            claude.messages.create(**asked)

        assert claude.messages.create(**asked).stop_reason == "end_turn"
