"""Each API's adapter against the simulator's process: the same faults give the same results on every wire."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import uuid4

import httpx
import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper.events import PartKind
from turnkeeper.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult, WebSearch
from turnkeeper_worker.config import ApiName, ProviderConfig
from turnkeeper_worker.failures import Signal, classify
from turnkeeper_worker.providers import Answer, Call, Failed, Provider, Result, open_providers
from turnkeeper_worker.replay import Reader, Said, readable_by, repair

KEY = "sk-simulator"
APIS: tuple[ApiName, ...] = get_args(ApiName)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DEADLINE_SECONDS = 20.0

Step = dict[str, Any]
Ask = Callable[..., Awaitable[Result]]


@dataclass
class Heard:
    """A listener that remembers."""

    begun: list[str] = field(default_factory=list)
    pieces: list[tuple[PartKind, str]] = field(default_factory=list)

    def started(self, response_id: str) -> None:
        self.begun.append(response_id)

    def said(self, kind: PartKind, text: str) -> None:
        self.pieces.append((kind, text))

    def text(self, kind: PartKind) -> str:
        return "".join(text for said, text in self.pieces if said == kind)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "turnkeeper_ops.simulator", "--port", "0", "--chunk-delay-ms", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            announced = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", child.stdout.readline())
            assert announced is not None
            yield announced[1]
        finally:
            child.kill()


def teach(url: str, *steps: Step) -> str:
    """Teach the simulator what to do; return the word that asks for it."""
    if not steps:
        return ""
    name = f"test-{uuid4().hex[:12]}"
    httpx.put(f"{url}/simulator/scripts/{name}", json={"steps": steps}).raise_for_status()
    return f"sim:{name}"


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> ApiName:
    name: ApiName = request.param
    return name


@pytest.fixture
async def connect(url: str, api: ApiName) -> AsyncIterator[Callable[..., Provider]]:
    """Return a function that opens the provider under a configuration."""
    opened: list[Provider] = []

    def connect(key: str = KEY, **config: Any) -> Provider:
        configured = {"ours": {"api": api, "base_url": f"{url}/v1", "api_key_env": "KEY"} | config}
        providers = {name: ProviderConfig.model_validate(one) for name, one in configured.items()}
        opened.extend(open_providers(providers, {"KEY": key}).values())
        return opened[-1]

    yield connect
    for provider in opened:
        await provider.close()


@pytest.fixture
def ask(connect: Callable[..., Provider], url: str) -> Ask:
    """Return a function that lets the simulator take *steps* and returns what the provider made of it."""

    async def ask(
        *steps: Step, history: tuple[Message, ...] = (), heard: Heard | None = None, **config: Any
    ) -> Result:
        text = f"Tell me of rivers {teach(url, *steps)}".strip()
        options = config.pop("options", {})
        call = Call(
            request_id=f"{uuid4()}/1.1",
            model="sim-1",
            history=repair([*history, Message(role="user", parts=(Text(text=text),))]),
            instructions="Be kind.",
            options=options,
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await connect(**config).call(call, heard or Heard())

    return ask


def answer(result: Result) -> Answer:
    assert isinstance(result, Answer), result
    return result


def failed(result: Result) -> Failed:
    assert isinstance(result, Failed), result
    return result


class TestAnswers:
    async def test_an_answer_is_heard_as_it_comes_and_kept_whole(self, ask: Ask, api: ApiName) -> None:
        heard = Heard()

        said = answer(await ask(heard=heard))

        expected = "I have read 1 user message. It says: “Tell me of rivers”."
        assert said.messages[0].parts == (Text(text=expected),)
        assert heard.text("text") == expected
        assert len(heard.pieces) > 1
        assert heard.begun == [said.response_id]
        assert said.finish == "stop"
        assert said.usage is not None
        assert said.usage["input_tokens"] > 0
        assert said.usage["output_tokens"] > 0
        assert said.can_anchor is (api == "openai-responses")

    async def test_an_answer_may_come_byte_by_byte(self, ask: Ask) -> None:
        said = answer(await ask({"type": "drip", "bytes_per_write": 7, "write_delay_ms": 0}))

        assert said.messages[0].text.startswith("I have read 1 user message.")

    async def test_thoughts_and_calls_come_along(self, ask: Ask) -> None:
        heard = Heard()
        calls = [{"name": "look", "arguments": {"at": n}, "call_id": f"call_{n}"} for n in (1, 2)]

        said = answer(
            await ask({"type": "answer", "text": "Hm.", "reasoning": "Rivers?", "calls": calls}, heard=heard)
        )

        thought, words, *called = said.messages[0].parts
        assert isinstance(thought, Reasoning)
        assert (thought.text, words) == ("Rivers?", Text(text="Hm."))
        assert [part.call_id for part in called if isinstance(part, ToolCall)] == ["call_1", "call_2"]
        assert said.finish == "tool_calls"
        assert heard.text("reasoning") == "Rivers?"
        assert heard.text("tool_call") == '{"at": 1}{"at": 2}'

    @pytest.mark.parametrize(("asked", "finish"), [("max_output_tokens", None), ("content_filter", "refusal")])
    async def test_an_answer_that_stops_early_says_why(
        self, ask: Ask, api: ApiName, asked: str, finish: str | None
    ) -> None:
        said = answer(await ask({"type": "incomplete", "reason": asked}))

        assert said.messages[0].text
        assert said.finish == ((api == "anthropic-messages" and finish) or asked)
        assert not said.can_anchor


FAULTS = [
    pytest.param({"type": "cut"}, ErrorKind.TIMEOUT, True, id="cut"),
    pytest.param({"type": "cut", "at": "before_terminal"}, ErrorKind.TIMEOUT, True, id="cut after all words"),
    pytest.param({"type": "reset"}, ErrorKind.TIMEOUT, True, id="reset"),
    pytest.param({"type": "reset", "at": "before_headers"}, ErrorKind.TIMEOUT, True, id="reset before a byte"),
    pytest.param({"type": "end"}, ErrorKind.TIMEOUT, True, id="an end that is none"),
    pytest.param({"type": "malformed"}, ErrorKind.TIMEOUT, True, id="a malformed frame"),
    pytest.param({"type": "html"}, ErrorKind.TIMEOUT, True, id="a web page"),
    pytest.param({"type": "empty"}, ErrorKind.GENERIC, True, id="an empty answer"),
    pytest.param({"type": "error_event"}, ErrorKind.GENERIC, True, id="an error event"),
    pytest.param(
        {"type": "error_event", "at": "before_first_event"},
        ErrorKind.GENERIC,
        True,
        id="an error event before all",
    ),
    pytest.param({"type": "status", "status": 401}, ErrorKind.AUTH, False, id="401"),
    pytest.param({"type": "status", "status": 429}, ErrorKind.RATE_LIMIT, True, id="429"),
    pytest.param({"type": "status", "status": 500}, ErrorKind.GENERIC, True, id="500"),
    pytest.param({"type": "status", "status": 503}, ErrorKind.OVERLOADED, True, id="503"),
    pytest.param(
        {"type": "status", "status": 400, "complaint": "context_overflow"},
        ErrorKind.CONTEXT_OVERFLOW,
        False,
        id="a prompt that is too long",
    ),
    pytest.param(
        {"type": "incomplete", "at": 0, "reason": "content_filter"},
        ErrorKind.CONTENT_FILTER,
        False,
        id="filtered before a word",
    ),
    pytest.param(
        {"type": "incomplete", "at": 0}, ErrorKind.GENERIC, False, id="an allowance that did not last for a word"
    ),
]


class TestFailures:
    @pytest.mark.parametrize(("step", "kind", "retryable"), FAULTS)
    async def test_a_fault_is_the_same_failure_in_every_format(
        self, ask: Ask, step: Step, kind: ErrorKind, retryable: bool
    ) -> None:
        error = classify(failed(await ask(step)).failure, now=NOW).error

        assert (error.kind, error.retryable) == (kind, retryable)

    async def test_words_that_were_shown_make_the_failure_visible(self, ask: Ask) -> None:
        result = failed(await ask({"type": "cut"}))

        assert result.failure.visible
        assert result.response_id

    async def test_a_wrong_key_is_the_callers_fault(self, ask: Ask) -> None:
        assert classify(failed(await ask(key="sk-wrong")).failure, now=NOW).error.kind is ErrorKind.AUTH

    async def test_nobody_listens(self, ask: Ask) -> None:
        result = failed(await ask(base_url="http://127.0.0.1:9/v1"))

        assert classify(result.failure, now=NOW).error.kind is ErrorKind.TIMEOUT


class TestWatchdogs:
    async def test_nothing_in_time_is_a_startup_timeout(self, ask: Ask) -> None:
        result = failed(await ask({"type": "stall"}, startup_timeout_seconds=0.2))

        assert result.failure.signal is Signal.STARTUP_TIMEOUT

    async def test_silence_in_the_middle_is_a_silence_timeout(self, ask: Ask) -> None:
        result = failed(await ask({"type": "stall", "at": 2}, silence_timeout_seconds=0.2))

        assert result.failure.signal is Signal.STREAM_SILENCE_TIMEOUT
        assert result.failure.visible


class TestEnds:
    """What is peculiar to one API; the rest is the same everywhere."""

    @pytest.mark.parametrize("missing", ["done", "reason"])
    async def test_half_an_end_is_enough_for_chat_completions_alone(
        self, ask: Ask, api: ApiName, missing: str
    ) -> None:
        result = await ask({"type": "end", "missing": missing})

        assert isinstance(result, Answer if api == "openai-chat" else Failed)

    @pytest.mark.parametrize("api", ["openai-chat"], indirect=True)
    async def test_an_error_that_comes_with_the_reason_is_one(self, ask: Ask) -> None:
        result = failed(await ask({"type": "error_event", "shape": "finish_reason"}))

        assert result.failure.signal is Signal.SSE_ERROR_EVENT

    @pytest.mark.parametrize("api", ["anthropic-messages"], indirect=True)
    @pytest.mark.parametrize(
        ("reason", "finish"),
        [
            ("pause_turn", "pause_turn"),
            ("refusal", "refusal"),
            ("context_window", "model_context_window_exceeded"),
        ],
    )
    async def test_anthropics_reasons_are_told(self, ask: Ask, reason: str, finish: str) -> None:
        assert answer(await ask({"type": "incomplete", "reason": reason})).finish == finish

    @pytest.mark.parametrize("api", ["anthropic-messages"], indirect=True)
    async def test_a_full_window_without_a_word_is_an_overflow(self, ask: Ask) -> None:
        result = failed(await ask({"type": "incomplete", "reason": "context_window", "at": 0}))

        assert classify(result.failure, now=NOW).error.kind is ErrorKind.CONTEXT_OVERFLOW

    @pytest.mark.parametrize("api", ["anthropic-messages"], indirect=True)
    async def test_a_message_that_was_cut_has_cost_its_input(self, ask: Ask) -> None:
        result = failed(await ask({"type": "cut"}))

        assert result.usage is not None
        assert result.usage["input_tokens"] > 0


FINISHED = b"""HTTP/1.1 200 OK\r
Content-Type: text/event-stream\r
\r
data: {"id": "chatcmpl-1", "choices": [{"delta": {"content": "Hi"}}]}

data: {"id": "chatcmpl-1", "choices": [{"delta": {}, "finish_reason": "stop"}]}

"""


@pytest.mark.parametrize("api", ["openai-chat"], indirect=True)
@pytest.mark.parametrize("ending", ["silence", "reset"])
async def test_an_answer_that_is_whole_is_not_lost_with_its_usage(
    ask: Ask, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnkeeper_worker.providers.http.LAST_WORDS_SECONDS", 0.2)
    heard_enough = asyncio.Event()

    async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(FINISHED)
        await writer.drain()
        if ending == "silence":
            await heard_enough.wait()
        writer.transport.abort()

    async with await asyncio.start_server(finish, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        said = answer(await ask(base_url=f"http://127.0.0.1:{port}/v1"))
        heard_enough.set()

    assert (said.messages[0].text, said.usage) == ("Hi", None)


async def test_a_query_in_the_base_url_survives(ask: Ask, url: str) -> None:
    said = answer(await ask(base_url=f"{url}/v1?api-version=2026-01-01"))

    assert said.messages[0].text


SEALED: tuple[Part, ...] = (
    Reasoning(id="rs_1", encrypted="gAAAAA", text="Hm"),
    Reasoning(text="Hm", signature="c2Vh"),
    Reasoning(text="Hm", told_in="reasoning_content"),
    WebSearch(id="ws_1", action={"type": "search", "query": "rivers"}),
)


async def test_a_chat_that_another_provider_began_goes_on(ask: Ask) -> None:
    call = ToolCall(call_id="functions.look:0", name="look", arguments="{")
    history = [
        Said(Message(role="user", parts=(Text(text="Hello"),))),
        Said(Message(role="user", parts=(Text(text="Hello?"),))),
        Said(Message(role="assistant", parts=(*SEALED, Text(text="Hi"), call)), "theirs"),
        Said(Message(role="user", parts=(ToolResult(call_id="functions.look:0", output="sunny"),))),
        Said(Message(role="assistant", parts=SEALED[:1]), "theirs"),
    ]

    said = answer(await ask(history=readable_by(history, Reader("ours", "seal"))))

    assert "Tell me of rivers" in said.messages[0].text


async def test_its_own_thoughts_searches_and_calls_are_taken_back(ask: Ask, api: ApiName) -> None:
    step = {
        "type": "answer",
        "text": "Hm.",
        "reasoning": "Rivers?",
        "search": "rivers",
        "calls": [{"name": "look", "arguments": {"at": 1}, "call_id": "call_1"}],
    }
    search_tool = {"type": "web_search_20250305", "name": "web_search"}
    options = {"tools": [search_tool]} if api == "anthropic-messages" else {}
    asked = Message(role="user", parts=(Text(text="Hello"),))
    result = Message(role="user", parts=(ToolResult(call_id="call_1", output="sunny"),))

    first = answer(await ask(step, options=options))
    second = answer(await ask(history=(asked, *first.messages, result), options=options))

    assert "Tell me of rivers" in second.messages[0].text
