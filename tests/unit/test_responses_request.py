"""The body of a request to the Responses API: what is sent, what is kept back, and how a history is given back."""

from typing import Any

import pytest

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
from turnkeeper_worker.providers.interface import Call, ToolSpec
from turnkeeper_worker.providers.openai_responses import RESERVED_OPTIONS, request_body

THOUGHT = Reasoning(id="rs_1", encrypted="gAAAAA", text="Hm")
THOUGHT_ITEM = {
    "type": "reasoning",
    "encrypted_content": "gAAAAA",
    "summary": [{"type": "summary_text", "text": "Hm"}],
}
CALL = ToolCall(call_id="call_1", name="look", arguments='{"at": 1}')
CALL_ITEM = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"at": 1}'}
LOOK = ToolSpec(name="look", description="Look there.", parameters={"type": "object", "properties": {}})
LOOK_TOOL = {
    "type": "function",
    "name": "look",
    "description": "Look there.",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
SEARCH = WebSearch(id="ws_1", action={"type": "search", "query": "rivers"})


def said(text: str) -> dict[str, Any]:
    content = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [content]}


def body(*history: Message, store: bool = True, **call: Any) -> dict[str, Any]:
    return request_body(Call(request_id="r", model="m", history=history, **call), store=store)


def items(role: str, *parts: Part) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = body(Message.model_validate({"role": role, "parts": parts}))["input"]
    return sent


class TestFields:
    def test_a_plain_request_says_no_more_than_it_must(self) -> None:
        sent = body(Message(role="user", parts=(Text(text="Hello"),)))

        assert sent == {
            "model": "m",
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            ],
            "stream": True,
            "store": True,
        }

    def test_a_chained_request_names_its_anchor(self) -> None:
        assert body(previous_response_id="resp_1")["previous_response_id"] == "resp_1"

    def test_instructions_are_sent_each_time(self) -> None:
        assert body(instructions="Be kind.", previous_response_id="resp_1")["instructions"] == "Be kind."

    def test_options_are_passed_on(self) -> None:
        assert (
            body(options={"temperature": 0, "reasoning": {"effort": "low"}}).items()
            >= {
                "temperature": 0,
                "reasoning": {"effort": "low"},
            }.items()
        )

    @pytest.mark.parametrize("name", sorted(RESERVED_OPTIONS))
    def test_an_option_cannot_replace_what_is_ours_to_set(self, name: str) -> None:
        assert body(options={name: "mine"}) == body()

    def test_the_chats_instructions_win_over_an_option(self) -> None:
        assert body(instructions="Be kind.", options={"instructions": "Be rude."})["instructions"] == "Be kind."


class TestInBackground:
    def test_it_is_streamed_and_kept(self) -> None:
        sent = body(background=True)

        assert (sent["background"], sent["stream"], sent["store"]) == (True, True, True)

    def test_what_is_not_kept_could_not_go_on(self) -> None:
        sent = body(background=True, store=False)

        assert sent["store"] is True
        assert "include" not in sent

    def test_any_other_request_does_not_mention_it(self) -> None:
        assert "background" not in body()


class TestTools:
    def test_the_workers_tools_are_offered(self) -> None:
        assert body(tools=(LOOK,))["tools"] == [LOOK_TOOL]

    def test_they_stand_beside_those_of_the_options(self) -> None:
        search = {"type": "web_search"}

        assert body(tools=(LOOK,), options={"tools": [search]})["tools"] == [search, LOOK_TOOL]

    def test_a_tool_of_the_workers_replaces_an_option_of_its_name(self) -> None:
        asked = [{"type": "function", "name": "look"}, {"type": "function", "name": "hear"}]

        assert body(tools=(LOOK,), options={"tools": asked})["tools"] == [asked[1], LOOK_TOOL]

    @pytest.mark.parametrize("asked", [None, "web_search", {"type": "web_search"}])
    def test_an_option_that_is_no_list_of_tools_is_not_sent_with_them(self, asked: object) -> None:
        assert body(tools=(LOOK,), options={"tools": asked})["tools"] == [LOOK_TOOL]

    @pytest.mark.parametrize("asked", [[{"type": "web_search"}], "web_search"])
    def test_without_tools_of_the_workers_the_options_stand(self, asked: object) -> None:
        assert body(options={"tools": asked})["tools"] == asked


class TestWithoutStore:
    def test_reasoning_is_asked_for_encrypted(self) -> None:
        sent = body(store=False)

        assert sent["store"] is False
        assert sent["include"] == ["reasoning.encrypted_content"]

    @pytest.mark.parametrize(
        ("include", "sent"),
        [
            pytest.param(["a", "reasoning.encrypted_content"], ["a", "reasoning.encrypted_content"], id="a list"),
            pytest.param(None, ["reasoning.encrypted_content"], id="nothing"),
            pytest.param("abc", ["reasoning.encrypted_content"], id="a text is no list"),
            pytest.param([{"a": 1}], ["reasoning.encrypted_content"], id="an object is no name"),
        ],
    )
    def test_what_else_is_asked_for_is_kept(self, include: object, sent: list[str]) -> None:
        assert body(store=False, options={"include": include})["include"] == sent


class TestHistory:
    def test_a_users_words_and_pictures_are_one_message(self) -> None:
        sent = items("user", Text(text="Look"), Image(url="https://example.org/a.png"))

        assert sent == [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Look"},
                    {"type": "input_image", "image_url": "https://example.org/a.png"},
                ],
            }
        ]

    def test_a_tools_result_is_an_item_of_its_own_before_the_words(self) -> None:
        sent = items("user", ToolResult(call_id="call_1", output="sunny"), Text(text="And?"))

        assert sent[0] == {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
        assert [item["type"] for item in sent] == ["function_call_output", "message"]

    def test_a_chained_request_may_bring_results_alone(self) -> None:
        results = (ToolResult(call_id="call_1", output="sunny"), ToolResult(call_id="call_2", output="12 °C"))

        sent = body(Message(role="user", parts=results), previous_response_id="resp_1")

        assert sent["previous_response_id"] == "resp_1"
        assert sent["input"] == [
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            {"type": "function_call_output", "call_id": "call_2", "output": "12 °C"},
        ]

    def test_a_result_alone_brings_no_empty_message(self) -> None:
        assert [item["type"] for item in items("user", ToolResult(call_id="1", output=""))] == [
            "function_call_output"
        ]

    def test_a_refusal_is_given_back_as_one(self) -> None:
        (item,) = items("assistant", Refusal(text="No."))

        assert item["content"] == [{"type": "refusal", "refusal": "No."}]

    @pytest.mark.parametrize(
        ("parts", "sent"),
        [
            pytest.param([Text(text="Hi")], [said("Hi")], id="words"),
            pytest.param([THOUGHT, CALL], [THOUGHT_ITEM, CALL_ITEM], id="a thought and its call"),
            pytest.param([THOUGHT, Text(text="Hi")], [THOUGHT_ITEM, said("Hi")], id="a thought and its words"),
            pytest.param([Text(text="Hi"), THOUGHT], [said("Hi")], id="a thought that led to nothing"),
            pytest.param(
                [Reasoning(id="rs_0", encrypted="gBBB"), THOUGHT, Text(text="Hi")],
                [THOUGHT_ITEM, said("Hi")],
                id="of two thoughts the one that led on",
            ),
            pytest.param(
                [Reasoning(id="rs_1", text="Hm"), Text(text="Hi")],
                [said("Hi")],
                id="a thought that is not readable",
            ),
            pytest.param([SEARCH, Text(text="Hi")], [said("Hi")], id="a search by its words alone"),
            pytest.param(
                [THOUGHT, SEARCH, Text(text="Hi")], [said("Hi")], id="a thought that led to a search goes with it"
            ),
            pytest.param(
                [THOUGHT, SEARCH, THOUGHT, Text(text="Hi")],
                [THOUGHT_ITEM, said("Hi")],
                id="the thought after a search stays",
            ),
            pytest.param(
                [THOUGHT, CALL, Text(text="Hi")],
                [THOUGHT_ITEM, CALL_ITEM, said("Hi")],
                id="a thought is sent once",
            ),
        ],
    )
    def test_a_thought_is_sent_only_with_what_it_led_to(
        self, parts: list[Part], sent: list[dict[str, Any]]
    ) -> None:
        assert items("assistant", *parts) == sent

    def test_nothing_is_sent_by_id(self) -> None:
        sent = items("assistant", THOUGHT, SEARCH, THOUGHT, CALL, Text(text="Hi"), Refusal(text="No."))

        assert not any("id" in item for item in sent)
