"""Chains of the Responses API: continued, replayed, and lost in every spelling."""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent

Script = Callable[..., str]
LastRequest = Callable[[], dict[str, Any]]


def stream(client: openai.OpenAI, text: str, **parameters: Any) -> list[ResponseStreamEvent]:
    with client.responses.create(model="m", input=text, stream=True, **parameters) as events:
        return list(events)


class TestChains:
    def test_a_chained_request_is_answered_from_the_whole_conversation(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model="m", input="My name is Ada")
        second = client.responses.create(model="m", input="Hm", previous_response_id=first.id)
        third = client.responses.create(model="m", input="Who am I?", previous_response_id=second.id)

        assert third.output_text == (
            "I have read 3 user messages. The first says: “My name is Ada”. The last says: “Who am I?”."
        )
        assert third.previous_response_id == second.id
        assert third.usage is not None
        assert 0 < third.usage.input_tokens_details.cached_tokens < third.usage.input_tokens

    def test_a_replay_of_the_output_is_taken_as_input(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "answer", "reasoning": "Hm", "search": "rivers"})
        first = client.responses.create(model="m", input=said)
        replayed: Any = [
            {"role": "user", "content": said},
            *(item.to_dict() for item in first.output),
            {"role": "user", "content": "And now?"},
        ]

        assert "2 user messages" in client.responses.create(model="m", input=replayed).output_text

    def test_a_tool_call_and_its_output_make_a_second_step(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "answer", "calls": [{"name": "get_weather", "call_id": "call_1"}]})
        first = client.responses.create(model="m", input=said)

        second = client.responses.create(
            model="m",
            input=[{"type": "function_call_output", "call_id": "call_1", "output": "sunny"}],
            previous_response_id=first.id,
        )

        assert first.output_text == ""
        assert second.output_text.endswith("A tool returned: “sunny”.")

    def test_a_stored_response_is_retrieved_and_deleted(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello")

        assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
        client.responses.delete(response.id)

        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(response.id)

    @pytest.mark.parametrize(
        "step",
        [
            pytest.param({"type": "cut"}, id="cut"),
            pytest.param({"type": "end"}, id="unfinished"),
            pytest.param({"type": "error_event"}, id="failed"),
        ],
    )
    def test_only_a_finished_answer_can_be_continued(
        self, client: openai.OpenAI, last_request: LastRequest, script: Script, step: dict[str, Any]
    ) -> None:
        with pytest.raises((openai.APIError, StopIteration)):
            next(e for e in stream(client, script(step)) if e.type == "response.completed")

        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="x", previous_response_id=last_request()["response_id"])

        assert caught.value.code == "previous_response_not_found"

    def test_what_is_not_stored_cannot_be_continued(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello", store=False)

        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="x", previous_response_id=response.id)

        assert (caught.value.code, caught.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )

    def test_a_lost_anchor_takes_its_conversation_along_and_a_full_replay_heals(
        self, client: openai.OpenAI
    ) -> None:
        first = client.responses.create(model="m", input="My name is Ada")
        second = client.responses.create(model="m", input="Hm", previous_response_id=first.id)

        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="Who am I? sim:lost-anchor", previous_response_id=second.id)

        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        healed = client.responses.create(
            model="m",
            input=[
                {"role": "user", "content": "My name is Ada"},
                {"role": "user", "content": "Who am I? sim:lost-anchor"},
            ],
        )
        assert "My name is Ada" in healed.output_text

    @pytest.mark.parametrize(
        ("spelling", "error", "text"),
        [
            pytest.param("not_found", openai.BadRequestError, "Previous response with id", id="not found"),
            pytest.param("invalid", openai.BadRequestError, "Invalid `previous_response_id`.", id="invalid"),
            pytest.param("unsupported_detail", openai.BadRequestError, "Unsupported parameter", id="detail"),
            pytest.param("zero_retention", openai.BadRequestError, "Zero Data Retention", id="ZDR"),
            pytest.param("xai_not_found", openai.NotFoundError, "not found", id="xAI"),
            pytest.param("lm_studio", openai.BadRequestError, "Prediction history node", id="LM Studio"),
            pytest.param("item_not_persisted", openai.NotFoundError, "Items are not persisted", id="item"),
        ],
    )
    def test_a_lost_anchor_is_told_in_many_spellings(
        self,
        client: openai.OpenAI,
        script: Script,
        spelling: str,
        error: type[openai.APIStatusError],
        text: str,
    ) -> None:
        said = script({"type": "lost_anchor", "spelling": spelling})
        first = client.responses.create(model="m", input="Hello")

        with pytest.raises(error) as caught:
            client.responses.create(model="m", input=said, previous_response_id=first.id)

        assert text in caught.value.response.text

    def test_every_chain_breaks_when_the_store_is_emptied(
        self, client: openai.OpenAI, control: httpx.Client
    ) -> None:
        first = client.responses.create(model="m", input="Hello")

        assert control.delete("/responses").json()["dropped"] > 0

        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="m", input="x", previous_response_id=first.id)
