"""The body of a request to the Anthropic Messages API: what the API demands, and what it would refuse."""

import dataclasses
from typing import Any, ClassVar

import pytest

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Source,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)
from turnkeeper_worker.providers.anthropic_history import UNSHOWN_IMAGE
from turnkeeper_worker.providers.anthropic_messages import RESERVED_OPTIONS, headers, request_body
from turnkeeper_worker.providers.history import FAILED_TOOL, SILENCE
from turnkeeper_worker.providers.interface import Call, ToolSpec

HELLO = Text(text="Hello")
HELLO_BLOCK = {"type": "text", "text": "Hello"}
THOUGHT = Reasoning(text="Hm", signature="c2Vh")
THOUGHT_BLOCK = {"type": "thinking", "thinking": "Hm", "signature": "c2Vh"}
CALL = ToolCall(call_id="toolu_1", name="look", arguments='{"at": 1}')
CALL_BLOCK = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}}
RESULT = ToolResult(call_id="toolu_1", output="sunny")
TOOL = {"name": "look", "input_schema": {"type": "object"}}
LOOK = ToolSpec(name="look", description="Look there.", parameters={"type": "object", "properties": {"at": {}}})
LOOK_TOOL = {
    "name": "look",
    "description": "Look there.",
    "input_schema": {"type": "object", "properties": {"at": {}}},
}
SEARCH_TOOL = {"type": "web_search_20250305", "name": "web_search"}
SOURCE = Source(url="https://example.org/", title="Rivers", age="May 1", encrypted="ZW5j")
SEARCH = WebSearch(id="srvtoolu_1", action={"type": "search", "query": "rivers"}, sources=(SOURCE,))
SEARCH_BLOCKS = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "rivers"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {
                "type": "web_search_result",
                "url": "https://example.org/",
                "title": "Rivers",
                "encrypted_content": "ZW5j",
                "page_age": "May 1",
            }
        ],
    },
]
THINKING = {"type": "enabled", "budget_tokens": 1024}


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def assistant(*parts: Part) -> Message:
    return Message(role="assistant", parts=parts)


def body(*history: Message, threads: bool = False, **call: Any) -> dict[str, Any]:
    return request_body(
        Call(request_id="r", model="m", history=history, **call), max_output_tokens=8192, threads=threads
    )


def messages(*history: Message, **options: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = body(*history, options=options)["messages"]
    return sent


def shown(*parts: Part) -> list[dict[str, Any]]:
    """Return the blocks that stand for *parts* of a user's."""
    (message,) = messages(user(*parts))
    blocks: list[dict[str, Any]] = message["content"]
    return blocks


def answered(*parts: Part, **options: Any) -> list[dict[str, Any]]:
    """Return the blocks that stand for *parts* of an assistant's."""
    _, message, *_ = messages(user(HELLO), assistant(*parts), user(HELLO), **options)
    blocks: list[dict[str, Any]] = message["content"]
    return blocks


class TestFields:
    def test_a_plain_request_says_no_more_than_it_must(self) -> None:
        assert body(user(HELLO)) == {
            "model": "m",
            "messages": [{"role": "user", "content": [HELLO_BLOCK]}],
            "max_tokens": 8192,
            "stream": True,
        }

    def test_instructions_are_the_systems_words(self) -> None:
        assert body(user(HELLO), instructions="Be kind.")["system"] == "Be kind."

    @pytest.mark.parametrize(("asked", "sent"), [(100, 100), (None, 8192)])
    def test_an_option_may_set_the_limit_that_the_api_demands(self, asked: int | None, sent: int) -> None:
        assert body(options={"max_tokens": asked})["max_tokens"] == sent

    @pytest.mark.parametrize("name", sorted(RESERVED_OPTIONS))
    def test_an_option_cannot_replace_what_is_ours_to_set(self, name: str) -> None:
        assert body(options={name: "mine"}) == body()

    def test_the_key_has_a_header_of_its_own(self) -> None:
        assert headers("sk-ant") == {"anthropic-version": "2023-06-01", "x-api-key": "sk-ant"}
        assert headers(None) == {"anthropic-version": "2023-06-01"}

    def test_threads_are_asked_for_by_their_version(self) -> None:
        asked = {"anthropic-version": "2023-06-01", "anthropic-beta": "message-threads-2026-08-12"}

        assert headers(None, threads=True) == asked


class TestConversation:
    @pytest.mark.parametrize(
        ("history", "roles"),
        [
            pytest.param([], ["user"], id="nobody said anything"),
            pytest.param([user(HELLO), user(HELLO)], ["user"], id="a turn that failed, and the next"),
            pytest.param([assistant(HELLO), user(HELLO)], ["user", "assistant", "user"], id="the model began"),
            pytest.param([user(HELLO), assistant(HELLO)], ["user", "assistant", "user"], id="no prefilled answer"),
            pytest.param(
                [user(HELLO), assistant(Reasoning(text="Hm")), user(HELLO)],
                ["user"],
                id="an answer of which nothing can be sent",
            ),
        ],
    )
    def test_users_and_models_take_turns(self, history: list[Message], roles: list[str]) -> None:
        assert [message["role"] for message in messages(*history)] == roles

    def test_silence_is_put_into_words(self) -> None:
        assert shown(Text(text=" \n")) == [{"type": "text", "text": SILENCE}]

    def test_results_come_first_in_the_very_next_message(self) -> None:
        sent = messages(user(HELLO), assistant(CALL), user(RESULT, HELLO), user(HELLO), tools=[TOOL])

        assert [block["type"] for block in sent[2]["content"]] == ["tool_result", "text", "text"]


class TestUsersParts:
    @pytest.mark.parametrize(
        ("url", "block"),
        [
            pytest.param(
                "https://example.org/a.png",
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                id="by address",
            ),
            pytest.param(
                "data:image/png;base64,iVBO",
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
                id="by its bytes",
            ),
            pytest.param(
                "data:image/webp;name=a.webp;base64,UklG",
                {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": "UklG"}},
                id="by its bytes, with a name",
            ),
            pytest.param(
                "data:image/tiff;base64,SUkq", {"type": "text", "text": UNSHOWN_IMAGE}, id="a strange type"
            ),
            pytest.param("data:image/png,%89PNG", {"type": "text", "text": UNSHOWN_IMAGE}, id="not in base64"),
            pytest.param("http://example.org/a.png", {"type": "text", "text": UNSHOWN_IMAGE}, id="no https"),
        ],
    )
    def test_a_picture_is_shown_or_mentioned(self, url: str, block: dict[str, Any]) -> None:
        assert shown(Image(url=url)) == [block]

    @pytest.mark.parametrize(
        ("result", "rest"),
        [
            pytest.param(RESULT, {"content": "sunny"}, id="a result"),
            pytest.param(RESULT.model_copy(update={"output": ""}), {}, id="an empty one"),
            pytest.param(
                RESULT.model_copy(update={"output": "☀\n" * 100_000}),
                {"content": "☀\n" * 100_000},
                id="a long one",
            ),
            pytest.param(
                RESULT.model_copy(update={"is_error": True}), {"content": "sunny", "is_error": True}, id="an error"
            ),
            pytest.param(
                RESULT.model_copy(update={"output": " ", "is_error": True}),
                {"content": FAILED_TOOL, "is_error": True},
                id="an error has to say something",
            ),
        ],
    )
    def test_a_tools_result_names_its_call(self, result: ToolResult, rest: dict[str, Any]) -> None:
        sent = messages(user(HELLO), assistant(CALL), user(result))

        assert sent[-1]["content"] == [{"type": "tool_result", "tool_use_id": "toolu_1"} | rest]


class TestAnswers:
    @pytest.mark.parametrize(
        ("parts", "blocks"),
        [
            pytest.param([HELLO], [HELLO_BLOCK], id="words"),
            pytest.param([Text(text=""), HELLO, Text(text="\n")], [HELLO_BLOCK], id="empty words go"),
            pytest.param([Refusal(text="No.")], [{"type": "text", "text": "No."}], id="a refusal is words"),
            pytest.param([THOUGHT, HELLO], [THOUGHT_BLOCK, HELLO_BLOCK], id="a sealed thought, unchanged"),
            pytest.param(
                [Reasoning(redacted="ZGF0YQ"), HELLO],
                [{"type": "redacted_thinking", "data": "ZGF0YQ"}, HELLO_BLOCK],
                id="a redacted thought",
            ),
            pytest.param([Reasoning(text="Hm"), HELLO], [HELLO_BLOCK], id="a thought without a seal"),
            pytest.param([Reasoning(id="rs_1", encrypted="gAAAAA"), HELLO], [HELLO_BLOCK], id="OpenAI's thought"),
            pytest.param([Reasoning(text="Hm", told_in="reasoning"), HELLO], [HELLO_BLOCK], id="an open thought"),
            pytest.param([HELLO, THOUGHT], [HELLO_BLOCK], id="a thought that led to nothing"),
            pytest.param([THOUGHT, CALL], [THOUGHT_BLOCK, CALL_BLOCK], id="a thought and its call"),
            pytest.param([SEARCH, HELLO], [HELLO_BLOCK], id="a search where there is no tool for it"),
        ],
    )
    def test_an_answer_is_its_blocks(self, parts: list[Part], blocks: list[dict[str, Any]]) -> None:
        assert answered(*parts) == blocks

    @pytest.mark.parametrize(
        ("search", "blocks"),
        [
            pytest.param(SEARCH, SEARCH_BLOCKS, id="whole"),
            pytest.param(WebSearch(id="ws_1", action={"type": "search", "query": "rivers"}), [], id="OpenAI's"),
            pytest.param(SEARCH.model_copy(update={"sources": None}), [], id="without its result"),
            pytest.param(SEARCH.model_copy(update={"sources": ()}), [], id="that found nothing"),
            pytest.param(
                SEARCH.model_copy(update={"sources": (Source(url="https://example.org/"),)}),
                [],
                id="with a source that nobody sealed",
            ),
        ],
    )
    def test_a_search_goes_back_with_what_it_found_or_not_at_all(
        self, search: WebSearch, blocks: list[dict[str, Any]]
    ) -> None:
        assert answered(search, HELLO, tools=[SEARCH_TOOL]) == [*blocks, HELLO_BLOCK]

    @pytest.mark.parametrize(
        ("arguments", "sent"),
        [("", {}), ('{"at": 1}', {"at": 1}), ("{", {"arguments": "{"}), ("7", {"arguments": 7})],
    )
    def test_the_input_of_a_tool_is_an_object(self, arguments: str, sent: dict[str, Any]) -> None:
        (block,) = answered(CALL.model_copy(update={"arguments": arguments}))

        assert block["input"] == sent

    def test_a_strange_id_is_renamed_in_the_call_and_in_its_result(self) -> None:
        call, result = (part.model_copy(update={"call_id": "functions.look:0"}) for part in (CALL, RESULT))

        sent = messages(user(HELLO), assistant(call), user(result))

        assert sent[1]["content"][0]["id"] == sent[2]["content"][0]["tool_use_id"] == "functions_look_0_ec000204"


class TestTools:
    HISTORY = (user(HELLO), assistant(CALL), user(RESULT))

    def test_calls_of_tools_that_are_no_longer_there_bring_tools_that_cannot_be_called(self) -> None:
        sent = body(*self.HISTORY)

        assert (sent["tools"], sent["tool_choice"]) == ([TOOL], {"type": "none"})

    def test_the_workers_tools_stand_behind_those_of_the_options(self) -> None:
        sent = body(user(HELLO), tools=(LOOK,), options={"tools": [SEARCH_TOOL]})

        assert sent["tools"] == [SEARCH_TOOL, LOOK_TOOL]

    @pytest.mark.parametrize(
        "asked",
        [
            pytest.param([TOOL], id="a tool of the same name"),
            pytest.param([7], id="no tool"),
            pytest.param("look", id="no list"),
        ],
    )
    def test_the_workers_tools_win(self, asked: object) -> None:
        assert body(user(HELLO), tools=(LOOK,), options={"tools": asked})["tools"] == [LOOK_TOOL]

    def test_a_tool_whose_name_is_none_is_the_apis_to_refuse(self) -> None:
        nameless = {"name": ["look"]}

        assert body(user(HELLO), tools=(LOOK,), options={"tools": [nameless]})["tools"] == [nameless, LOOK_TOOL]

    def test_the_workers_tools_are_tools_that_can_be_called(self) -> None:
        sent = body(*self.HISTORY, tools=(dataclasses.replace(LOOK, name="go"),))

        assert [tool["name"] for tool in sent["tools"]] == ["go"]
        assert "tool_choice" not in sent

    def test_tools_that_are_there_stay_as_they_are(self) -> None:
        sent = body(*self.HISTORY, options={"tools": [SEARCH_TOOL]})

        assert sent["tools"] == [SEARCH_TOOL]
        assert "tool_choice" not in sent

    @pytest.mark.parametrize(
        ("history", "thinks"),
        [
            pytest.param([user(HELLO), assistant(THOUGHT, CALL), user(RESULT)], True, id="its own calls"),
            pytest.param(HISTORY, False, id="another's calls"),
            pytest.param([*HISTORY, assistant(HELLO), user(HELLO)], True, id="another's calls, long ago"),
            pytest.param([user(HELLO)], True, id="no calls"),
        ],
    )
    def test_no_thinking_is_asked_for_amid_calls_that_were_made_without(
        self, history: list[Message], thinks: bool
    ) -> None:
        assert ("thinking" in body(*history, options={"thinking": THINKING})) is thinks

    def test_thinking_that_the_model_decides_on_is_asked_for_all_the_same(self) -> None:
        assert "thinking" in body(*self.HISTORY, options={"thinking": {"type": "adaptive"}})


class TestThreads:
    CREATE: ClassVar = {"type": "create"}
    CONTINUE: ClassVar = {"type": "continue", "previous_message_id": "msg_1"}

    def continued(self, *news: Message, **call: Any) -> dict[str, Any]:
        return body(*news, threads=True, previous_response_id="msg_1", **call)

    def test_without_threads_there_is_none(self) -> None:
        assert "thread" not in body(user(HELLO))

    def test_a_whole_history_opens_a_thread(self) -> None:
        sent = body(user(HELLO), threads=True, instructions="Be kind.", tools=(LOOK,))

        assert (sent["thread"], sent["system"], sent["tools"]) == (self.CREATE, "Be kind.", [LOOK_TOOL])

    def test_a_thread_goes_on_with_what_is_new_alone(self) -> None:
        assert self.continued(user(HELLO)) == {
            "model": "m",
            "messages": [{"role": "user", "content": [HELLO_BLOCK]}],
            "max_tokens": 8192,
            "stream": True,
            "thread": self.CONTINUE,
        }

    def test_what_the_thread_was_opened_with_is_not_said_again(self) -> None:
        options = {"tools": [SEARCH_TOOL], "system": "Be brief.", "temperature": 0}

        sent = self.continued(user(HELLO), instructions="Be kind.", tools=(LOOK,), options=options)

        assert not {"system", "tools"} & sent.keys()
        assert sent["temperature"] == 0

    @pytest.mark.parametrize(
        ("news", "roles"),
        [
            pytest.param([user(RESULT)], ["user"], id="results of the calls that it ended with"),
            pytest.param([user(RESULT, HELLO)], ["user"], id="results and words"),
            pytest.param([assistant(HELLO), user(HELLO)], ["assistant", "user"], id="words of the model's"),
            pytest.param([user(Text(text=" "))], ["user"], id="silence"),
            pytest.param([user(HELLO), assistant(HELLO)], ["user", "assistant", "user"], id="no prefilled answer"),
        ],
    )
    def test_nothing_is_put_before_what_is_new(self, news: list[Message], roles: list[str]) -> None:
        assert [message["role"] for message in self.continued(*news)["messages"]] == roles

    def test_results_need_no_calls_beside_them(self) -> None:
        sent = self.continued(user(RESULT), options={"thinking": THINKING})

        assert sent["messages"][0]["content"] == [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
        ]
        assert sent["thinking"] == THINKING

    def test_anothers_calls_bring_no_tools_into_a_thread(self) -> None:
        sent = self.continued(user(HELLO), assistant(CALL), user(RESULT))

        assert not {"tools", "tool_choice"} & sent.keys()

    def test_tools_that_cannot_be_called_open_no_thread(self) -> None:
        sent = body(user(HELLO), assistant(CALL), user(RESULT), threads=True)

        assert sent["tool_choice"] == {"type": "none"}
        assert "thread" not in sent

    @pytest.mark.parametrize("name", ["cache_control", "context_management", "fallbacks"])
    def test_what_no_thread_can_do_opens_none(self, name: str) -> None:
        sent = body(user(HELLO), threads=True, options={name: {"type": "asked"}})

        assert sent[name] == {"type": "asked"}
        assert "thread" not in sent


BEGUN = SEARCH.model_copy(update={"sources": None})
BEGUN_BLOCK = SEARCH_BLOCKS[0]
ENDED = WebSearch(id=SEARCH.id, sources=SEARCH.sources)


class TestPauses:
    def paused(self, *messages: Message, continues: bool = True, can_search: bool = True) -> list[dict[str, Any]]:
        """Return what is sent of the answer, and behind it."""
        options = {"tools": [SEARCH_TOOL]} if can_search else {}
        sent: list[dict[str, Any]] = body(user(HELLO), *messages, continues=continues, options=options)["messages"]
        return sent[1:]

    @pytest.mark.parametrize(
        ("parts", "blocks"),
        [
            pytest.param([HELLO], [HELLO_BLOCK], id="words"),
            pytest.param([HELLO, BEGUN], [HELLO_BLOCK, BEGUN_BLOCK], id="a search that has only begun"),
            pytest.param([SEARCH], SEARCH_BLOCKS, id="a search that has ended"),
            pytest.param([BEGUN, HELLO], [HELLO_BLOCK], id="a search that failed, before the end"),
            pytest.param([HELLO, THOUGHT], [HELLO_BLOCK, THOUGHT_BLOCK], id="a thought under its seal"),
            pytest.param([HELLO, Reasoning(text="Hm")], [HELLO_BLOCK], id="a thought without a seal"),
        ],
    )
    def test_an_answer_that_paused_stays_as_it_broke_off(
        self, parts: list[Part], blocks: list[dict[str, Any]]
    ) -> None:
        assert self.paused(assistant(*parts)) == [{"role": "assistant", "content": blocks}]

    def test_an_answer_that_is_not_continued_is_mended_and_answered(self) -> None:
        silence = {"role": "user", "content": [{"type": "text", "text": SILENCE}]}

        sent = self.paused(assistant(HELLO, THOUGHT, BEGUN), continues=False)

        assert sent == [{"role": "assistant", "content": [HELLO_BLOCK]}, silence]

    def test_only_what_was_said_last_was_paused(self) -> None:
        sent = self.paused(assistant(HELLO, THOUGHT, BEGUN), user(HELLO), assistant(HELLO))

        assert sent[0] == {"role": "assistant", "content": [HELLO_BLOCK]}

    def test_no_search_is_given_back_without_the_tool_for_it(self) -> None:
        sent = self.paused(assistant(HELLO, BEGUN), can_search=False)

        assert sent == [{"role": "assistant", "content": [HELLO_BLOCK]}]

    @pytest.mark.parametrize("continues", [True, False])
    def test_after_a_pause_a_search_finds_its_result(self, continues: bool) -> None:
        sent = self.paused(assistant(HELLO, BEGUN), assistant(ENDED, HELLO), continues=continues)

        assert sent[0] == {"role": "assistant", "content": [HELLO_BLOCK, *SEARCH_BLOCKS, HELLO_BLOCK]}

    def test_a_thought_before_a_pause_stays_with_what_it_led_to(self) -> None:
        sent = self.paused(assistant(HELLO, THOUGHT), assistant(CALL), user(RESULT), continues=False)

        assert sent[0]["content"] == [HELLO_BLOCK, THOUGHT_BLOCK, CALL_BLOCK]

    def test_a_pause_before_which_nothing_can_be_sent_is_a_new_question(self) -> None:
        assert self.paused(assistant(BEGUN), can_search=False) == []
