"""Each API's adapter against the simulator's process: the same faults give the same results on every wire."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, get_args
from uuid import uuid4

import httpx
import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper.events import PartKind
from turnkeeper.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult, WebSearch
from turnkeeper_worker.config import ApiName, ProviderConfig
from turnkeeper_worker.failures import Signal, classify
from turnkeeper_worker.providers import (
    Answer,
    Call,
    Failed,
    Provider,
    Result,
    Running,
    ToolSpec,
    open_providers,
)
from turnkeeper_worker.replay import Reader, Said, readable_by, repair

KEY = "sk-simulator"
APIS: tuple[ApiName, ...] = get_args(ApiName)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DEADLINE_SECONDS = 20.0

Step = dict[str, Any]
Ask = Callable[..., Awaitable[Result]]
Make = Callable[..., Awaitable[Result]]


@dataclass
class Heard:
    """A listener that remembers."""

    begun: list[str] = field(default_factory=list)
    pieces: list[tuple[PartKind, str]] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        pass

    def started(self, response_id: str) -> None:
        self.begun.append(response_id)

    def said(self, kind: PartKind, text: str) -> None:
        self.pieces.append((kind, text))

    def counted(self, usage: dict[str, int]) -> None:
        self.counts.append(usage)

    async def reached(self, running: Running) -> None:
        raise AssertionError(f"no response goes on without us: {running}")

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
def make(connect: Callable[..., Provider]) -> Make:
    """Return a function that makes one call with a history, and returns what the provider made of it."""

    async def make(
        *history: Message, heard: Heard | None = None, config: Mapping[str, Any] | None = None, **fields: Any
    ) -> Result:
        call = Call(**{"request_id": f"{uuid4()}/1.1", "model": "sim-1", "history": history} | fields)
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await connect(**(config or {})).call(call, heard or Heard())

    return make


@pytest.fixture
def ask(make: Make, url: str) -> Ask:
    """Return a function that lets the simulator take *steps* and returns what the provider made of it."""

    async def ask(
        *steps: Step, history: tuple[Message, ...] = (), heard: Heard | None = None, **config: Any
    ) -> Result:
        text = f"Tell me of rivers {teach(url, *steps)}".strip()
        options = config.pop("options", {})
        said = repair([*history, Message(role="user", parts=(Text(text=text),))])
        return await make(*said, heard=heard, config=config, instructions="Be kind.", options=options)

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
        assert heard.counts[-1] == said.usage
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


def user(*said: str | Part) -> Message:
    return Message(role="user", parts=tuple(Text(text=one) if isinstance(one, str) else one for one in said))


LOOK = ToolSpec(
    name="look",
    description="Look there.",
    parameters={"type": "object", "properties": {"at": {"type": "integer"}}},
)


class TestTools:
    async def test_results_are_taken_whatever_they_say(self, make: Make, url: str) -> None:
        calls = [{"name": "look", "arguments": {"at": n}, "call_id": f"call_{n}"} for n in range(4)]
        asked = user(f"Hello {teach(url, {'type': 'answer', 'calls': calls})}")
        results = user(
            ToolResult(call_id="call_0", output=""),
            ToolResult(call_id="call_1", output="", is_error=True),
            ToolResult(call_id="call_2", output="no such city", is_error=True),
            ToolResult(call_id="call_3", output="Köln ☀\n" * 50_000),
        )

        first = answer(await make(asked, tools=(LOOK,)))
        second = answer(await make(asked, *first.messages, results, user("And?"), tools=(LOOK,)))

        assert first.finish == "tool_calls"
        assert "And?" in second.messages[0].text


class TestNovelties:
    async def test_what_a_later_version_of_the_api_adds_changes_nothing(self, ask: Ask) -> None:
        step = {
            "type": "answer",
            "text": "Rivers are wide.",
            "reasoning": "Hm",
            "calls": [{"name": "look", "arguments": {"at": 1}, "call_id": "call_1"}],
        }
        plain, novel = Heard(), Heard()

        expected = answer(await ask(step, heard=plain))
        said = answer(await ask(step | {"novel": True}, heard=novel))

        assert said.messages[0].text == expected.messages[0].text
        assert list(map(type, said.messages[0].parts)) == list(map(type, expected.messages[0].parts))
        assert (said.finish, said.usage) == (expected.finish, expected.usage)
        assert novel.pieces == plain.pieces


@pytest.mark.parametrize("api", ["anthropic-messages"], indirect=True)
class TestThreads:
    """Anthropic keeps the conversation, and only what is new is sent."""

    CONFIG: ClassVar = {"threads": True}

    async def begin(self, make: Make, *said: str, **call: Any) -> Answer:
        return answer(await make(user(*said), config=self.CONFIG, **call))

    async def go_on(self, make: Make, after: str | None, *said: str | Part, **call: Any) -> Result:
        return await make(user(*said), config=self.CONFIG, previous_response_id=after, **call)

    async def test_a_thread_knows_what_was_said_before(self, make: Make) -> None:
        fields = {"instructions": "Be kind.", "tools": (LOOK,)}
        first = await self.begin(make, "Hello", **fields)

        second = answer(await self.go_on(make, first.response_id, "And rivers?", **fields))
        third = answer(await self.go_on(make, second.response_id, "And lakes?", **fields))

        assert first.can_anchor
        assert "3 user messages" in third.messages[0].text

    async def test_a_thread_takes_the_results_of_the_calls_that_it_ended_with(self, make: Make, url: str) -> None:
        call = {"name": "look", "arguments": {"at": 1}, "call_id": "toolu_1"}
        word = teach(url, {"type": "answer", "calls": [call]}, {"type": "answer"})
        result = ToolResult(call_id="toolu_1", output="sunny")
        turn = uuid4()

        first = await self.begin(make, f"Hello {word}", tools=(LOOK,), request_id=f"{turn}/1.1")
        second = answer(await self.go_on(make, first.response_id, result, request_id=f"{turn}/2.1"))

        assert (first.finish, first.can_anchor) == ("tool_calls", True)
        assert (second.finish, second.can_anchor) == ("stop", True)

    async def test_a_chat_that_another_provider_began_may_become_a_thread(self, make: Make) -> None:
        history = [
            Said(user("Hello")),
            Said(Message(role="assistant", parts=(*SEALED, Text(text="Hi"))), "theirs"),
        ]
        before = readable_by(history, Reader("ours", "seal"))

        first = answer(await make(*before, user("Rivers?"), config=self.CONFIG))
        second = answer(await self.go_on(make, first.response_id, "And lakes?"))

        assert "3 user messages" in second.messages[0].text

    @pytest.mark.parametrize(
        "code",
        [
            "thread_not_found",
            "thread_fingerprint_mismatch",
            "thread_already_continued",
            "thread_continue_in_flight",
            "thread_unsupported_request",
        ],
    )
    async def test_a_thread_that_cannot_be_continued_is_a_broken_chain(
        self, make: Make, url: str, code: str
    ) -> None:
        first = await self.begin(make, "Hello")
        word = teach(url, {"type": "lost_anchor", "spelling": code})

        result = failed(await self.go_on(make, first.response_id, f"And? {word}"))

        assert code.encode() in result.failure.body
        assert classify(result.failure, now=NOW).chain_broken

    async def test_an_answer_is_continued_once(self, make: Make) -> None:
        first = await self.begin(make, "Hello")
        answer(await self.go_on(make, first.response_id, "And?"))

        result = failed(await self.go_on(make, first.response_id, "Or?"))

        assert classify(result.failure, now=NOW).chain_broken

    async def test_a_message_that_is_not_known_is_continued_by_nobody(self, make: Make) -> None:
        result = failed(await self.go_on(make, "msg_gone", "And?"))

        assert classify(result.failure, now=NOW).chain_broken

    async def test_what_threads_cannot_do_breaks_the_chain(self, make: Make) -> None:
        first = await self.begin(make, "Hello")
        options = {"context_management": {"edits": []}}

        result = failed(await self.go_on(make, first.response_id, "And?", options=options))

        assert classify(result.failure, now=NOW).chain_broken


SEARCH_TOOL = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize("api", ["anthropic-messages"], indirect=True)
class TestPauses:
    """Anthropic pauses in a long answer, and goes on with it when it comes back as it was."""

    async def paused(self, make: Make, url: str, *steps: Step) -> tuple[tuple[Message, ...], list[Answer]]:
        """Go on until the answer is whole; return the history, and the answers in the order of their pauses."""
        turn, history = uuid4(), (user(f"Rivers? {teach(url, *steps)}"),)
        answers: list[Answer] = []
        for attempt in range(1, len(steps) + 1):
            said = answer(
                await make(
                    *history,
                    request_id=f"{turn}/{attempt}.1",
                    continues=bool(answers),
                    options={"tools": [SEARCH_TOOL]},
                )
            )
            answers.append(said)
            history = (*history, *said.messages)
        return history, answers

    async def test_an_answer_goes_on_after_its_words(self, make: Make, url: str) -> None:
        steps = [{"type": "incomplete", "reason": "pause_turn", "text": "Rivers are"}, {"type": "answer"}]

        _, (first, second) = await self.paused(make, url, *steps)

        assert (first.finish, second.finish) == ("pause_turn", "stop")
        assert not first.can_anchor

    async def test_an_answer_goes_on_with_a_search_that_had_only_begun(self, make: Make, url: str) -> None:
        pause = {"type": "incomplete", "reason": "pause_turn", "search": "rivers", "in_search": True}

        history, answers = await self.paused(make, url, pause, pause | {"search": "lakes"}, {"type": "answer"})

        assert [said.finish for said in answers] == ["pause_turn", "pause_turn", "stop"]
        searches = [part for message in history for part in message.parts if isinstance(part, WebSearch)]
        assert [bool(search.sources) for search in searches] == [False, True, False, True]

    async def test_when_it_is_whole_it_goes_back_with_all_that_it_found(self, make: Make, url: str) -> None:
        pause = {"type": "incomplete", "reason": "pause_turn", "search": "rivers", "in_search": True}
        history, _ = await self.paused(make, url, pause, {"type": "answer", "reasoning": "Hm"})

        said = answer(await make(*history, user("And lakes?"), options={"tools": [SEARCH_TOOL]}))

        assert "2 user messages" in said.messages[0].text
        (sent,) = [one for one in last_input(url) if one["role"] == "assistant"]
        assert [block["type"] for block in sent["content"]][:2] == ["server_tool_use", "web_search_tool_result"]


def last_input(url: str) -> list[dict[str, Any]]:
    """Return the messages of the last request that the simulator had."""
    entries = httpx.get(f"{url}/simulator/requests").raise_for_status().json()["requests"]
    messages: list[dict[str, Any]] = entries[-1]["input"]
    return messages
