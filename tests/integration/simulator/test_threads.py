"""Message threads: the official `anthropic` package creates, continues and replays them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types.beta import BetaMessage

BETA = "message-threads-2026-08-12"
TOOL: Any = {"name": "get_weather", "input_schema": {"type": "object"}}

Script = Callable[..., str]
LastRequest = Callable[[], dict[str, Any]]


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def send(claude: anthropic.Anthropic, messages: list[Any], thread: Any, **rest: Any) -> BetaMessage:
    usual: dict[str, Any] = {"model": "m", "max_tokens": 100, "betas": [BETA]}
    message: BetaMessage = claude.beta.messages.create(messages=messages, thread=thread, **(usual | rest))
    return message


def create(claude: anthropic.Anthropic, text: str, **rest: Any) -> BetaMessage:
    return send(claude, said(text), {"type": "create"}, **rest)


def go_on(claude: anthropic.Anthropic, message_id: str, messages: list[Any], **rest: Any) -> BetaMessage:
    return send(claude, messages, {"type": "continue", "previous_message_id": message_id}, **rest)


def text_of(message: BetaMessage) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@contextmanager
def refused(error: type[anthropic.APIStatusError], code: str) -> Iterator[None]:
    with pytest.raises(error) as caught:
        yield
    assert caught.value.response.json()["error"]["details"]["error_code"] == code


class TestThreads:
    def test_a_continued_thread_is_answered_from_the_whole_conversation(
        self, claude: anthropic.Anthropic, last_request: LastRequest
    ) -> None:
        first = create(claude, "My name is Ada", system="Be kind")
        second = go_on(claude, first.id, said("Hm"))
        third = go_on(claude, second.id, said("Who am I?"))

        assert text_of(third) == (
            "I have read 3 user messages. The first says: “My name is Ada”. The last says: “Who am I?”."
        )
        logged = last_request()
        assert (logged["previous_response_id"], logged["input"]) == (second.id, said("Who am I?"))
        assert [item["role"] for item in logged["history"]] == ["user", "assistant"] * 2 + ["user"]
        assert third.usage.input_tokens > second.usage.input_tokens > first.usage.input_tokens

    def test_the_log_tells_how_much_was_sent(
        self, claude: anthropic.Anthropic, requests: Callable[..., list[dict[str, Any]]]
    ) -> None:
        first = create(claude, "x" * 10_000)
        go_on(claude, first.id, said("Hm"))

        created, continued = requests()[-2:]
        assert created["request_bytes"] > 10_000
        assert continued["request_bytes"] < 1_000
        assert (created["store"], created["previous_response_id"]) == (True, None)

    def test_the_packages_own_thread_does_all_this(
        self, claude: anthropic.Anthropic, last_request: LastRequest
    ) -> None:
        thread = claude.beta.messages.thread(model="m", max_tokens=100, system="Be kind")

        thread.send(*said("My name is Ada"))
        with thread.stream(*said("Who am I?")) as events:
            text = events.get_final_text()

        assert "My name is Ada" in text
        assert len(last_request()["input"]) == 1

    def test_the_packages_own_thread_replays_what_was_lost(
        self, claude: anthropic.Anthropic, script: Script, last_request: LastRequest
    ) -> None:
        thread = claude.beta.messages.thread(model="m", max_tokens=100)
        thread.send(*said("My name is Ada"))

        answer = thread.send(*said(script({"type": "lost_anchor"})))

        assert "My name is Ada" in text_of(answer)
        logged = last_request()
        assert (logged["previous_response_id"], len(logged["input"])) == (None, 3)

    def test_a_request_without_the_package_takes_the_same_road(self, claude: anthropic.Anthropic) -> None:
        extra: dict[str, Any] = {"extra_headers": {"anthropic-beta": BETA}}
        first = claude.messages.create(
            model="m", max_tokens=100, messages=said("Hello"), extra_body={"thread": {"type": "create"}}, **extra
        )
        thread = {"type": "continue", "previous_message_id": first.id}

        second = claude.messages.create(
            model="m", max_tokens=100, messages=said("Hm"), extra_body={"thread": thread}, **extra
        )

        assert "2 user messages" in str(second.content[0])

    def test_a_tools_result_answers_a_call_of_the_thread(
        self, claude: anthropic.Anthropic, script: Script
    ) -> None:
        calls = [{"name": "get_weather", "call_id": "toolu_1"}]
        first = create(claude, script({"type": "answer", "reasoning": "Hm", "calls": calls}), tools=[TOOL])
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}

        second = go_on(claude, first.id, [{"role": "user", "content": [result]}])

        assert first.stop_reason == "tool_use"
        assert text_of(second).endswith("A tool returned: “sunny”.")

    def test_a_call_of_the_thread_must_be_answered(self, claude: anthropic.Anthropic, script: Script) -> None:
        first = create(claude, script({"type": "answer", "calls": [{"name": "get_weather"}]}), tools=[TOOL])

        with pytest.raises(anthropic.BadRequestError, match="`tool_use` ids were found without `tool_result`"):
            go_on(claude, first.id, said("Hm"))

    def test_an_answer_that_says_nothing_can_be_continued(self, claude: anthropic.Anthropic) -> None:
        first = create(claude, "Hello sim:empty")

        assert "2 user messages" in text_of(go_on(claude, first.id, said("Hm")))

    def test_a_paused_message_is_continued_with_nothing(self, claude: anthropic.Anthropic, script: Script) -> None:
        first = create(
            claude, script({"type": "incomplete", "reason": "pause_turn"}, {"type": "answer", "text": "!"})
        )

        second = go_on(claude, first.id, [])

        assert (first.stop_reason, text_of(second)) == ("pause_turn", "!")
        assert "2 user messages" in text_of(go_on(claude, second.id, said("Hm")))


class TestRefusals:
    def test_without_the_beta_header_thread_is_a_field_like_any_unknown_one(
        self, claude: anthropic.Anthropic
    ) -> None:
        with pytest.raises(anthropic.BadRequestError, match="thread: Extra inputs are not permitted") as caught:
            send(claude, said("Hello"), {"type": "create"}, betas=[])

        assert "details" not in caught.value.response.json()["error"]

    def test_what_was_no_thread_cannot_be_continued(self, claude: anthropic.Anthropic) -> None:
        first = claude.messages.create(model="m", max_tokens=100, messages=said("Hello"))

        with refused(anthropic.NotFoundError, "thread_not_found"):
            go_on(claude, first.id, said("Hm"))

    def test_another_account_does_not_find_the_thread(
        self, claude: anthropic.Anthropic, second_claude: anthropic.Anthropic
    ) -> None:
        first = create(claude, "Hello")

        with refused(anthropic.NotFoundError, "thread_not_found"):
            go_on(second_claude, first.id, said("Hm"))

    def test_each_message_is_continued_once(self, claude: anthropic.Anthropic) -> None:
        first = create(claude, "Hello")
        go_on(claude, first.id, said("Hm"))

        with refused(anthropic.BadRequestError, "thread_already_continued"):
            go_on(claude, first.id, said("Hm"))

    @pytest.mark.parametrize(
        "changed",
        [
            pytest.param({"model": "n"}, id="another model"),
            pytest.param({"system": "Be rude"}, id="another system prompt"),
            pytest.param({"tools": [TOOL]}, id="other tools"),
        ],
    )
    def test_what_must_stay_the_same_must(self, claude: anthropic.Anthropic, changed: dict[str, Any]) -> None:
        first = create(claude, "Hello", system="Be kind")

        with refused(anthropic.BadRequestError, "thread_fingerprint_mismatch"):
            go_on(claude, first.id, said("Hm"), **changed)
        assert "2 user messages" in text_of(go_on(claude, first.id, said("Hm"), system="Be kind"))

    def test_only_one_request_at_a_time_continues_a_message(
        self, claude: anthropic.Anthropic, script: Script
    ) -> None:
        first = create(claude, "Hello")
        slow: Any = script({"type": "answer", "chunk_delay_ms": 86_400_000})
        thread: Any = {"type": "continue", "previous_message_id": first.id}
        continuing = claude.beta.messages.create(
            model="m", max_tokens=100, messages=said(slow), thread=thread, betas=[BETA], stream=True
        )

        # Its headers are here, so it has begun; it ends when the client hangs up.
        with continuing, refused(anthropic.BadRequestError, "thread_continue_in_flight"):
            go_on(claude, first.id, said("Hm"))

    @pytest.mark.parametrize(
        "step",
        [
            pytest.param({"type": "status", "status": 503}, id="refused"),
            pytest.param({"type": "cut"}, id="cut"),
            pytest.param({"type": "error_event"}, id="failed"),
        ],
    )
    def test_what_failed_can_be_continued_again(
        self, claude: anthropic.Anthropic, script: Script, step: dict[str, Any]
    ) -> None:
        first = create(claude, "My name is Ada")
        again = said(script(step))

        with pytest.raises(anthropic.APIError):
            go_on(claude, first.id, again)

        assert "My name is Ada" in text_of(go_on(claude, first.id, again))

    @pytest.mark.parametrize(
        ("spelling", "error", "code"),
        [
            pytest.param("not_found", anthropic.NotFoundError, "thread_not_found"),
            pytest.param("thread_not_found", anthropic.NotFoundError, "thread_not_found"),
            pytest.param("thread_fingerprint_mismatch", anthropic.BadRequestError, "thread_fingerprint_mismatch"),
            pytest.param("thread_already_continued", anthropic.BadRequestError, "thread_already_continued"),
            pytest.param("thread_continue_in_flight", anthropic.BadRequestError, "thread_continue_in_flight"),
            pytest.param("thread_unsupported_request", anthropic.BadRequestError, "thread_unsupported_request"),
        ],
    )
    @pytest.mark.parametrize("in_stream", [False, True], ids=["refused", "in the stream"])
    def test_a_thread_is_lost_in_many_spellings(
        self,
        claude: anthropic.Anthropic,
        script: Script,
        spelling: str,
        error: type[anthropic.APIStatusError],
        code: str,
        in_stream: bool,
    ) -> None:
        text = script({"type": "lost_anchor", "spelling": spelling, "in_stream": in_stream})
        first = create(claude, "Hello")
        thread: Any = {"type": "continue", "previous_message_id": first.id}

        with pytest.raises(anthropic.APIStatusError) as caught:
            for _ in claude.beta.messages.create(
                model="m", max_tokens=100, messages=said(text), thread=thread, betas=[BETA], stream=True
            ):
                pass

        assert in_stream or isinstance(caught.value, error)
        assert f'"error_code":"{code}"' in json.dumps(caught.value.body, separators=(",", ":"))

    def test_a_request_that_creates_passes_over_a_lost_thread(
        self, claude: anthropic.Anthropic, script: Script
    ) -> None:
        assert "1 user message" in text_of(create(claude, script({"type": "lost_anchor"})))

    def test_every_thread_is_gone_when_the_store_is_emptied(
        self, claude: anthropic.Anthropic, control: httpx.Client
    ) -> None:
        first = create(claude, "Hello")

        assert control.delete("/responses").json()["dropped"] > 0

        with refused(anthropic.NotFoundError, "thread_not_found"):
            go_on(claude, first.id, said("Hm"))
