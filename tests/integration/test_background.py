"""Background responses over real sockets: whatever becomes of a connection, the response is paid for once."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper.events import PartKind
from turnkeeper.messages import Message, Text
from turnkeeper_ops.services.ports import free_port
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.failures import Classified, Signal, classify
from turnkeeper_worker.providers import (
    Answer,
    Call,
    CalledOff,
    Failed,
    HttpProvider,
    Provider,
    Result,
    Running,
    open_providers,
)
from turnkeeper_worker.providers.background import Patience

KEY = "sk-simulator"
DEADLINE_SECONDS = 20.0
SLOWLY = {"chunk_delay_ms": 30}
HASTY = Patience(first_pause=0.01, longest_pause=0.02, longest_absence=0.02, reply=1.0)

Open = Callable[..., HttpProvider]


@dataclass
class Heard:
    """A listener that remembers, in order."""

    log: list[tuple[str, Any]] = field(default_factory=list)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        pass

    def started(self, response_id: str) -> None:
        self.log.append(("started", response_id))

    def said(self, kind: PartKind, text: str) -> None:
        self.log.append((kind, text))

    def counted(self, usage: dict[str, int]) -> None:
        self.log.append(("counted", usage))

    async def reached(self, running: Running) -> None:
        # What is kept takes its time; nothing may be heard meanwhile.
        self.log.append(("reaching", running))
        await asyncio.sleep(0.001)
        self.log.append(("reached", running))

    def all(self, kind: str) -> list[Any]:
        return [what for how, what in self.log if how == kind]

    @property
    def words(self) -> str:
        return "".join(self.all("text"))

    @property
    def running(self) -> Running:
        last = self.all("reached")[-1]
        assert isinstance(last, Running)
        return last


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    """Return the address of a running simulator."""
    command = [sys.executable, "-m", "turnkeeper_ops.simulator", "--port", "0", "--chunk-delay-ms", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            announced = re.fullmatch(r"listening on (\S+)\n", child.stdout.readline())
            assert announced is not None
            yield announced[1]
        finally:
            child.kill()


@pytest.fixture
async def control(simulator: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{simulator}/simulator") as control:
        yield control


@pytest.fixture
async def open_at() -> AsyncIterator[Open]:
    """Open a provider at an address."""
    opened: list[Provider] = []

    def open_one(address: str, *, key: str = KEY, patience: Patience | None = None, **config: Any) -> HttpProvider:
        usual = {"base_url": f"{address}/v1", "api_key_env": "KEY"}
        configured = {"openai": ProviderConfig.model_validate(usual | config)}
        provider = open_providers(configured, {"KEY": key})["openai"]
        assert isinstance(provider, HttpProvider)
        opened.append(replace(provider, patience=patience) if patience else provider)
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


@pytest.fixture
def provider(simulator: str, open_at: Open) -> Open:
    """Open the simulator as a provider."""
    return lambda **config: open_at(simulator, **config)


def asking(words: str, **rest: Any) -> Call:
    history = (Message(role="user", parts=(Text(text=words),)),)
    return Call(request_id=f"{uuid4()}/1.1", model="m", history=history, background=True, **rest)


async def script(control: httpx.AsyncClient, *steps: dict[str, Any]) -> str:
    """Register steps; return a message that asks for them."""
    name = f"test-{uuid4().hex[:12]}"
    (await control.put(f"/scripts/{name}", json={"steps": steps})).raise_for_status()
    return f"Tell me of rivers sim:{name}"


async def entries(control: httpx.AsyncClient, call: Call) -> list[dict[str, Any]]:
    """Return what the simulator has logged of a call."""
    turn = call.request_id.partition("/")[0]
    logged: list[dict[str, Any]] = (await control.get("/requests", params={"turn": turn})).json()["requests"]
    return logged


async def fetches(control: httpx.AsyncClient, call: Call) -> list[str]:
    """Return how the simulator was asked for the one response that it has generated for a call."""
    (entry,) = await entries(control, call)
    assert entry["generated"]
    return [fetch["kind"] for fetch in entry["fetches"]]


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.01)


async def leave(provider: Provider, call: Call, *, after: int = 3) -> Heard:
    """Make a call, and die when so many pieces have been said and kept."""
    heard = Heard()
    task = asyncio.create_task(provider.call(call, heard))

    async def is_far_enough() -> bool:
        return len(heard.all("text")) >= after and heard.log[-1][0] == "reached"

    await until(is_far_enough)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return heard


def answered(result: Result) -> str:
    assert isinstance(result, Answer), result
    return result.messages[0].text


def failed(result: Result) -> tuple[Failed, Classified]:
    assert isinstance(result, Failed), result
    return result, classify(result.failure, now=datetime.now(UTC))


class TestAConnectionThatHolds:
    async def test_an_answer_is_heard_as_any_other(self, provider: Open, control: httpx.AsyncClient) -> None:
        heard, call = Heard(), asking("Tell me of rivers")

        result = await provider().call(call, heard)

        assert answered(result) == heard.words == "I have read 1 user message. It says: “Tell me of rivers”."
        assert isinstance(result, Answer)
        assert result.can_anchor
        assert heard.all("started") == [result.response_id]
        assert heard.all("counted") == [result.usage]
        assert await fetches(control, call) == []

    @pytest.mark.parametrize("delay_ms", [0, 5])
    async def test_the_response_is_kept_before_a_word_of_it_is_said(
        self, provider: Open, control: httpx.AsyncClient, delay_ms: int
    ) -> None:
        before = datetime.now(UTC)
        heard = Heard()
        words = await script(control, {"type": "answer", "chunk_delay_ms": delay_ms})

        await provider().call(asking(words), heard)

        assert [how for how, _ in heard.log[:3]] == ["started", "reaching", "reached"]
        first = heard.all("reached")[0]
        assert (first.response_id, first.cursor) == (heard.all("started")[0], 0)
        assert before <= first.began_at <= datetime.now(UTC)

    async def test_nothing_is_heard_while_the_response_is_being_kept(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        heard = Heard()

        await provider().call(asking(await script(control, {"type": "answer", **SLOWLY})), heard)

        order = [how for how, _ in heard.log]
        assert all(order[place + 1] == "reached" for place, how in enumerate(order) if how == "reaching")
        cursors = [running.cursor for running in heard.all("reached")]
        assert cursors == sorted(set(cursors))
        assert len(cursors) > 3

    async def test_what_a_listener_raises_is_not_taken_for_a_broken_connection(self, provider: Open) -> None:
        class Forgetful(Heard):
            async def reached(self, running: Running) -> None:
                raise ConnectionResetError(running.response_id)

        with pytest.raises(ConnectionResetError, match="resp_"):
            await provider().call(asking("Hello"), Forgetful())

    async def test_a_slow_listener_is_not_taken_for_a_silent_provider(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        class Slow(Heard):
            async def reached(self, running: Running) -> None:
                await asyncio.sleep(1.2 if running.cursor == 0 else 0)

        call = asking("Hello")

        answered(await provider(startup_timeout_seconds=1, silence_timeout_seconds=1).call(call, Slow()))

        assert await fetches(control, call) == []

    async def test_a_request_that_is_refused_has_nothing_to_come_back_to(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        words = await script(control, {"type": "status", "status": 429, "headers": {"Retry-After": "7"}})

        result, classified = failed(await provider().call(asking(words), Heard()))

        assert (result.goes_on, result.response_id) == (False, None)
        assert classified.error.kind is ErrorKind.RATE_LIMIT

    @pytest.mark.parametrize("shape", ["nested", "flat", "response_failed", "error_then_failed"])
    async def test_an_error_that_ends_the_response_is_told_as_one(
        self, provider: Open, control: httpx.AsyncClient, shape: str
    ) -> None:
        error = {"code": "rate_limit_exceeded", "message": "Slow down.", "error_type": "tokens"}
        words = await script(control, {"type": "error_event", "shape": shape, "at": 2, **error})

        result, classified = failed(await provider().call(asking(words), Heard()))

        assert classified.error.kind is ErrorKind.RATE_LIMIT
        assert classified.error.detail == "Slow down."
        assert not result.goes_on

    async def test_an_answer_that_stops_early_says_so(self, provider: Open, control: httpx.AsyncClient) -> None:
        words = await script(control, {"type": "incomplete", "at": 2})

        result = await provider().call(asking(words), Heard())

        assert isinstance(result, Answer)
        assert (result.finish, result.can_anchor) == ("max_output_tokens", False)


class TestAConnectionThatBreaks:
    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1 over aiohttp", "httpx's own transport"])
    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"type": "cut", "at": 3}, id="cut"),
            pytest.param({"type": "reset", "at": 3}, id="reset"),
            pytest.param({"type": "end", "at": 3}, id="ended"),
            pytest.param({"type": "malformed", "at": 3}, id="malformed"),
            pytest.param({"type": "stall", "at": 3}, id="silent"),
            pytest.param({"type": "cut", "at": 0}, id="cut before a word"),
            pytest.param({"type": "cut", "at": "before_terminal"}, id="cut before the end"),
        ],
    )
    async def test_the_answer_goes_on_where_it_was(
        self, provider: Open, control: httpx.AsyncClient, fault: dict[str, Any], http2: bool
    ) -> None:
        heard, call = Heard(), asking(await script(control, {**SLOWLY, **fault}))

        silence = 1.0 if fault["type"] == "stall" else 60.0
        result = await provider(http2=http2, silence_timeout_seconds=silence).call(call, heard)

        assert answered(result) == heard.words
        assert heard.all("started") == [heard.running.response_id]
        assert await fetches(control, call) == ["resume"]

    async def test_without_an_id_there_is_nothing_to_come_back_to(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        words = await script(control, {"type": "cut", "at": "before_first_event"})

        result, classified = failed(await provider().call(asking(words), Heard()))

        assert (result.goes_on, classified.error.kind) == (False, ErrorKind.TIMEOUT)

    async def test_what_is_too_old_to_be_streamed_is_looked_at_until_it_is_over(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        heard = Heard()
        call = asking(await script(control, {"type": "cut", "at": 3, "resumable": False, **SLOWLY}))

        result = await provider(patience=HASTY).call(call, heard)

        assert answered(result).startswith(heard.words)
        assert len(heard.words) < len(answered(result))
        looks = await fetches(control, call)
        assert len(looks) > 1
        assert set(looks) == {"retrieve"}

    async def test_what_is_gone_is_asked_for_anew(self, provider: Open, control: httpx.AsyncClient) -> None:
        call = asking(await script(control, {"type": "cut", "at": 3, "retrieval": "gone", **SLOWLY}))

        result, classified = failed(await provider().call(replace(call, previous_response_id=None), Heard()))

        assert (result.failure.signal, result.goes_on) == (Signal.RESPONSE_GONE, False)
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)
        assert result.failure.visible

    async def test_a_chained_response_that_is_gone_does_not_break_the_chain(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        opened = provider()
        anchor = await opened.call(asking("Hello"), Heard())
        assert isinstance(anchor, Answer)
        words = await script(control, {"type": "cut", "at": 3, "retrieval": "gone", **SLOWLY})

        result = await opened.call(asking(words, previous_response_id=anchor.response_id), Heard())

        assert not failed(result)[1].chain_broken

    async def test_a_passing_trouble_of_the_provider_is_waited_out(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        heard = Heard()
        call = asking(await script(control, {"type": "cut", "at": 3, "retrieval": "unavailable_once", **SLOWLY}))

        result = await provider(patience=HASTY).call(call, heard)

        assert answered(result) == heard.words
        assert await fetches(control, call) == ["resume", "resume"]

    async def test_a_lasting_one_is_left_to_the_turn(self, provider: Open, control: httpx.AsyncClient) -> None:
        call = asking(await script(control, {"type": "cut", "at": 3, "retrieval": "unavailable", **SLOWLY}))

        result, classified = failed(
            await provider(patience=HASTY, silence_timeout_seconds=0.3).call(call, Heard())
        )

        assert (result.goes_on, result.failure.status, classified.error.retryable) == (True, 500, True)
        assert result.response_id

    async def test_an_attempt_that_is_cancelled_leaves_the_response_alone(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        call = asking(await script(control, {"type": "answer", **SLOWLY}))

        await leave(provider(), call)

        assert await fetches(control, call) == []


class TestASuccessor:
    async def test_it_goes_on_where_the_other_worker_died(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        call = asking(await script(control, {"type": "answer", **SLOWLY}))
        before, after = await leave(provider(), call), Heard()

        result = await provider().call(replace(call, running=before.running), after)

        assert answered(result) == before.words + after.words
        assert after.all("started") == [before.running.response_id]
        assert after.running.began_at == before.running.began_at
        assert await fetches(control, call) == ["retrieve", "resume"]

    async def test_the_answer_is_whole_even_if_little_of_it_was_heard(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        answer = {"type": "answer", "text": "One. " * 20, "reasoning": "Hm, hm.", **SLOWLY}
        call = asking(await script(control, answer))
        before, after = await leave(provider(), call, after=6), Heard()

        result = await provider().call(replace(call, running=before.running), after)

        assert isinstance(result, Answer)
        assert [part.type for part in result.messages[0].parts] == ["reasoning", "text"]
        assert answered(result) == "One. " * 20
        assert after.all("reasoning") == []

    async def test_what_is_over_already_is_the_answer_at_once(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        opened, call, heard = provider(), asking(await script(control, {"type": "answer", **SLOWLY})), Heard()
        before = await leave(opened, call)
        whole = await opened.call(replace(call, running=before.running), Heard())

        result = await opened.call(replace(call, running=before.running), heard)

        assert result == whole
        assert (heard.words, len(heard.all("started"))) == ("", 1)
        assert (await fetches(control, call))[2:] == ["retrieve"]

    async def test_what_it_cannot_stream_it_looks_at(self, provider: Open, control: httpx.AsyncClient) -> None:
        call = asking(await script(control, {"type": "answer", "resumable": False, **SLOWLY}))
        before = await leave(provider(), call)

        result = await provider(patience=HASTY).call(replace(call, running=before.running), Heard())

        assert before.words in answered(result)
        assert set(await fetches(control, call)) == {"retrieve"}

    async def test_what_it_cannot_find_is_gone(self, provider: Open) -> None:
        running = Running(response_id="resp_of/another?", began_at=datetime.now(UTC), cursor=7)

        result, _ = failed(await provider().call(asking("Hello", running=running), Heard()))

        assert (result.failure.signal, result.goes_on) == (Signal.RESPONSE_GONE, False)
        assert result.response_id == "resp_of/another?"

    async def test_with_a_wrong_key_there_is_no_coming_back(self, provider: Open) -> None:
        running = Running(response_id="resp_1", began_at=datetime.now(UTC), cursor=7)

        result, classified = failed(await provider(key="sk-wrong").call(asking("Hello", running=running), Heard()))

        assert (classified.error.kind, result.goes_on) == (ErrorKind.AUTH, False)

    async def test_a_provider_that_is_out_of_reach_is_tried_again_until_it_was_silent_for_too_long(
        self, open_at: Open
    ) -> None:
        nowhere = open_at(f"http://127.0.0.1:{free_port()}", patience=HASTY, silence_timeout_seconds=0.3)
        running = Running(response_id="resp_1", began_at=datetime.now(UTC), cursor=7)

        result, classified = failed(await nowhere.call(asking("Hello", running=running), Heard()))

        assert (result.goes_on, result.response_id) == (True, "resp_1")
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)

    async def test_a_response_that_was_cancelled_meanwhile_is_over(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        opened, call = provider(), asking(await script(control, {"type": "answer", **SLOWLY}))
        before = await leave(opened, call)
        await opened.call_off(before.running.response_id)

        result, _ = failed(await opened.call(replace(call, running=before.running), Heard()))

        assert (result.failure.signal, result.goes_on) == (Signal.PROVIDER_CANCELLED, False)
        assert result.usage


class TestTheQueue:
    STUCK: dict[str, Any] = {"type": "answer", "queued_seconds": 3600}  # noqa: RUF012 - never changed

    async def test_what_is_queued_for_too_long_is_called_off(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        call = asking(await script(control, self.STUCK))

        result, classified = failed(await provider(queue_timeout_seconds=0.3).call(call, Heard()))

        assert (result.failure.signal, result.goes_on) == (Signal.STARTUP_TIMEOUT, False)
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.STARTUP_TIMEOUT, True)
        assert (await fetches(control, call))[-2:] == ["retrieve", "cancel"]

    async def test_the_time_that_another_worker_waited_counts(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        call, heard = asking(await script(control, self.STUCK)), Heard()
        first = asyncio.create_task(provider().call(call, heard))

        async def is_kept() -> bool:
            return bool(heard.all("reached"))

        await until(is_kept)
        first.cancel()
        long_ago = replace(heard.running, began_at=datetime.now(UTC) - timedelta(seconds=301))

        result, _ = failed(await provider().call(replace(call, running=long_ago), Heard()))

        assert result.failure.signal is Signal.STARTUP_TIMEOUT
        assert await fetches(control, call) == ["retrieve", "cancel"]

    async def test_a_queue_is_no_silence(self, provider: Open, control: httpx.AsyncClient) -> None:
        call, heard = asking(await script(control, {"type": "answer", "queued_seconds": 0.9})), Heard()

        result = await provider(silence_timeout_seconds=0.5).call(call, heard)

        assert answered(result) == heard.words
        assert await fetches(control, call) == []

    async def test_without_a_limit_it_is_waited_for(self, provider: Open, control: httpx.AsyncClient) -> None:
        words = await script(control, {"type": "answer", "queued_seconds": 0.4})

        answered(await provider(queue_timeout_seconds=0, silence_timeout_seconds=0.1).call(asking(words), Heard()))

    async def test_what_has_begun_in_time_is_not_called_off(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        call = asking(await script(control, {"type": "answer", "queued_seconds": 0.3, "chunk_delay_ms": 200}))

        answered(await provider(queue_timeout_seconds=1).call(call, Heard()))

        assert await fetches(control, call) == []


class TestCallingOff:
    async def test_it_stops_the_response_and_tells_what_it_has_cost(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        opened, call = provider(), asking(await script(control, {"type": "answer", **SLOWLY}))
        response_id = (await leave(opened, call)).running.response_id

        called_off = await opened.call_off(response_id)

        assert called_off.is_over
        assert called_off.usage is not None
        assert called_off.usage["input_tokens"] > 0
        assert await fetches(control, call) == ["cancel"]

    async def test_what_was_over_has_cost_what_it_has(self, provider: Open) -> None:
        opened = provider()
        answer = await opened.call(asking("Hello"), Heard())
        assert isinstance(answer, Answer)
        assert answer.response_id is not None

        assert await opened.call_off(answer.response_id) == CalledOff(is_over=True, usage=answer.usage)

    async def test_what_could_never_be_called_off_has_cost_something_too(self, provider: Open) -> None:
        opened = provider()
        answer = await opened.call(replace(asking("Hello"), background=False), Quiet())
        assert isinstance(answer, Answer)
        assert answer.response_id is not None

        assert await opened.call_off(answer.response_id) == CalledOff(is_over=True, usage=answer.usage)

    async def test_what_is_gone_is_over(self, provider: Open) -> None:
        assert await provider().call_off("resp_nowhere") == CalledOff(is_over=True)

    async def test_of_what_is_out_of_reach_nothing_is_known(self, open_at: Open) -> None:
        nowhere = open_at(f"http://127.0.0.1:{free_port()}")

        assert await nowhere.call_off("resp_1") == CalledOff(is_over=False)

    @pytest.mark.parametrize("api", ["openai-chat", "anthropic-messages"])
    async def test_an_api_without_background_has_nothing_running(self, open_at: Open, api: str) -> None:
        nowhere = open_at(f"http://127.0.0.1:{free_port()}", api=api)

        assert await nowhere.call_off("resp_1") == CalledOff(is_over=True)


class Quiet(Heard):
    """A listener of a call that is not in the background."""

    async def reached(self, running: Running) -> None:
        raise AssertionError(running)


@dataclass
class Odd:
    """A provider of its own kind: it answers each sort of request with what it was given for it, in order.

    The sorts are `create`, `resume`, `look` and `cancel`.  The last answer is given again and again; None is
    silence.
    """

    address: str
    answers: dict[str, list[bytes | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            answer = self._take(*head.split(" ", 2)[:2])
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()

    def _take(self, method: str, target: str) -> bytes | None:
        if method == "POST":
            sort = "cancel" if target.endswith("/cancel") else "create"
        else:
            sort = "resume" if "stream=true" in target else "look"
        self.asked.append(sort)
        self.targets.append(target)
        answers = self.answers[sort]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
async def odd() -> AsyncIterator[Odd]:
    odd = Odd(f"http://127.0.0.1:{free_port()}")
    server = await asyncio.start_server(odd.serve, "127.0.0.1", int(odd.address.rpartition(":")[2]))
    yield odd
    server.close()


def reply(status: int, body: object = None, **headers: str) -> bytes:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in (fields | headers).items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def stream(*events: object, first: int = 0) -> bytes:
    """Answer with events, numbered from *first*, and then with the end of the stream."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    numbered = (
        {"sequence_number": number} | event if isinstance(event, dict) else event
        for number, event in enumerate(events, start=first)
    )
    return head + b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in numbered)


def response(status: str, text: str | None = None, **rest: Any) -> dict[str, Any]:
    message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return {"id": "resp_1", "status": status, "output": [message] if text else [], **rest}


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


def done(text: str | None = None) -> dict[str, Any]:
    return {"type": "response.completed", "response": response("completed", text)}


CREATED = {"type": "response.created", "response": response("in_progress")}
ERROR = {"type": "error", "error": {"code": "server_error", "message": "Sorry."}}
GONE = reply(404, {"error": {"message": "Response with id 'resp_1' not found."}})
TOO_OLD = reply(400, {"error": {"message": "This response can no longer be streamed"}})


class TestOddProviders:
    @pytest.fixture
    def ask(self, odd: Odd, open_at: Open) -> Callable[..., Awaitable[Result]]:
        """Ask a provider that gives these answers."""

        async def ask(
            heard: Heard | None = None,
            *,
            call: Call | None = None,
            config: dict[str, Any] | None = None,
            **answers: list[bytes | None],
        ) -> Result:
            odd.answers = answers
            provider = open_at(odd.address, patience=HASTY, **(config or {}))
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await provider.call(call or asking("Hello"), heard or Heard())

        return ask

    async def test_an_end_that_leaves_out_the_answer_is_looked_up(self, odd: Odd, ask: Any) -> None:
        heard = Heard()

        result = await ask(
            heard,
            create=[stream(CREATED, delta("Hi"), done())],
            look=[reply(200, response("completed", "Hi Ada"))],
        )

        assert (answered(result), heard.words) == ("Hi Ada", "Hi")
        assert odd.asked == ["create", "look"]

    async def test_an_answer_that_is_nowhere_is_no_answer(self, odd: Odd, ask: Any) -> None:
        item = {"type": "response.output_item.done", "item": response("", "a part of it")["output"][0]}

        result, _ = failed(
            await ask(create=[stream(CREATED, item, done())], look=[reply(200, response("completed"))])
        )

        assert (result.failure.signal, result.goes_on) == (Signal.EMPTY_OUTPUT, False)
        assert odd.asked == ["create", "look"]

    async def test_a_stream_that_begins_at_the_start_again_says_nothing_twice(self, ask: Any) -> None:
        heard = Heard()

        result = await ask(
            heard,
            create=[stream(CREATED, delta("Hi "))],
            resume=[stream(CREATED, delta("Hi "), delta("Ada"), done("Hi Ada"))],
        )

        assert answered(result) == heard.words == "Hi Ada"

    async def test_events_without_numbers_cannot_be_taken_up_again(self, odd: Odd, ask: Any) -> None:
        heard = Heard()
        nameless = {"sequence_number": None}

        result = await ask(
            heard,
            create=[stream(CREATED | nameless, delta("Hi ") | nameless)],
            look=[reply(200, response("in_progress")), reply(200, response("completed", "Hi Ada"))],
        )

        assert (answered(result), heard.words) == ("Hi Ada", "Hi ")
        assert odd.asked == ["create", "look", "look"]

    async def test_streams_that_tell_nothing_new_are_given_up_for_looks(self, odd: Odd, ask: Any) -> None:
        result = await ask(
            create=[stream(CREATED, delta("Hi "))],
            resume=[stream(7, first=2)],
            look=[reply(200, response("completed", "Hi Ada"))],
        )

        assert answered(result) == "Hi Ada"
        assert odd.asked == ["create", "resume", "resume", "resume", "look"]

    @pytest.mark.parametrize(
        "refusal",
        [
            pytest.param(TOO_OLD, id="400"),
            pytest.param(GONE, id="404, of the stream alone"),
            pytest.param(reply(405), id="405"),
            pytest.param(reply(200, response("in_progress")), id="no stream"),
        ],
    )
    async def test_where_there_is_no_stream_the_response_itself_decides(
        self, odd: Odd, ask: Any, refusal: bytes
    ) -> None:
        result = await ask(
            create=[stream(CREATED)], resume=[refusal], look=[reply(200, response("completed", "Hi Ada"))]
        )

        assert answered(result) == "Hi Ada"
        assert odd.asked == ["create", "resume", "look"]

    @pytest.mark.parametrize(
        "trouble",
        [
            pytest.param(reply(429), id="429"),
            pytest.param(reply(503), id="503"),
            pytest.param(reply(408), id="408"),
            pytest.param(reply(200, "<html>"), id="no JSON"),
            pytest.param(reply(200, [1]), id="no object"),
            pytest.param(reply(200, {}), id="no response"),
            pytest.param(reply(200, response("dreaming")), id="a status that nobody knows"),
            pytest.param(b"", id="a closed connection"),
            pytest.param(None, id="silence"),
        ],
    )
    async def test_what_passes_is_waited_out(self, odd: Odd, ask: Any, trouble: bytes | None) -> None:
        result = await ask(
            create=[stream(CREATED)],
            resume=[TOO_OLD],
            look=[trouble, trouble, reply(200, response("completed", "Hi Ada"))],
        )

        assert answered(result) == "Hi Ada"
        assert odd.asked[2:] == ["look", "look", "look"]

    async def test_a_wait_that_is_asked_for_is_kept(self, ask: Any) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()

        await ask(
            create=[stream(CREATED)],
            resume=[reply(503, **{"retry-after-ms": "200"}), stream(done("Hi"), first=1)],
        )

        assert loop.time() - began_at >= 0.2

    async def test_a_wait_that_is_too_long_is_left_to_the_turn(self, ask: Any) -> None:
        result, classified = failed(
            await ask(
                create=[stream(CREATED)],
                resume=[reply(429, **{"Retry-After": "60"})],
                config={"silence_timeout_seconds": 5},
            )
        )

        assert (result.goes_on, classified.error.kind) == (True, ErrorKind.RATE_LIMIT)
        assert classified.hint is not None
        assert classified.hint.wait == timedelta(seconds=60)

    async def test_a_refusal_to_tell_of_a_chained_response_is_no_broken_chain(self, ask: Any) -> None:
        anchored = asking("Hello", previous_response_id="resp_0")
        lost = {"error": {"message": "Previous response not found.", "code": "previous_response_not_found"}}

        for refusal in (GONE, reply(400, lost), reply(401, lost)):
            result, classified = failed(
                await ask(call=anchored, create=[stream(CREATED)], resume=[TOO_OLD], look=[refusal])
            )

            assert not classified.chain_broken
            assert not result.goes_on

    async def test_a_trouble_of_the_provider_is_no_broken_chain_either(self, ask: Any) -> None:
        anchored = asking("Hello", previous_response_id="resp_0")
        wrapped = reply(500, {"error": {"status": 404, "message": "Response with id 'resp_1' not found."}})

        result, classified = failed(
            await ask(
                call=anchored,
                create=[stream(CREATED)],
                resume=[wrapped],
                config={"silence_timeout_seconds": 0.1},
            )
        )

        assert (result.goes_on, classified.chain_broken) == (True, False)

    async def test_a_chain_that_broke_in_the_response_is_a_broken_chain(self, ask: Any) -> None:
        anchored = asking("Hello", previous_response_id="resp_0")
        error = {"code": "previous_response_not_found", "message": "Previous response not found."}

        _, classified = failed(
            await ask(
                call=anchored,
                create=[stream(CREATED)],
                resume=[TOO_OLD],
                look=[reply(200, response("failed", error=error))],
            )
        )

        assert classified.chain_broken

    @pytest.mark.parametrize(
        ("found", "goes_on", "usage"),
        [
            pytest.param(
                reply(200, response("failed", usage={"input_tokens": 3})), False, {"input_tokens": 3}, id="failed"
            ),
            pytest.param(reply(200, response("in_progress")), True, None, id="of the stream alone"),
            pytest.param(reply(503), True, None, id="who knows"),
            pytest.param(GONE, False, None, id="gone"),
        ],
    )
    async def test_an_error_in_a_stream_is_checked_against_the_response(
        self, ask: Any, found: bytes, goes_on: bool, usage: dict[str, int] | None
    ) -> None:
        result, classified = failed(await ask(create=[stream(CREATED, ERROR)], look=[found]))

        assert (result.goes_on, result.usage) == (goes_on, usage)
        assert (result.failure.signal, classified.error.detail) == (Signal.SSE_ERROR_EVENT, "Sorry.")

    async def test_what_else_the_options_want_to_see_is_asked_for_again(self, odd: Odd, ask: Any) -> None:
        sources = asking("Hello", options={"include": ["web_search_call.action.sources"]})

        await ask(
            call=sources,
            create=[stream(CREATED)],
            resume=[TOO_OLD],
            look=[reply(200, response("completed", "Hi"))],
            config={"base_url": f"{odd.address}/v1?api-version=1"},
        )

        asked = "include%5B%5D=web_search_call.action.sources"
        assert odd.targets == [
            "/v1/responses?api-version=1",
            f"/v1/responses/resp_1?api-version=1&stream=true&starting_after=0&{asked}",
            f"/v1/responses/resp_1?api-version=1&{asked}",
        ]

    @pytest.mark.parametrize(
        ("cancel", "is_over"),
        [
            pytest.param(reply(204, ""), True, id="204"),
            pytest.param(reply(400), True, id="400"),
            pytest.param(reply(409), True, id="409"),
            pytest.param(reply(429), False, id="429"),
            pytest.param(reply(503), False, id="503"),
            pytest.param(reply(200, "<html>"), False, id="a web page"),
            pytest.param(b"", False, id="a closed connection"),
        ],
    )
    async def test_only_a_word_of_the_provider_calls_off(
        self, odd: Odd, open_at: Open, cancel: bytes, is_over: bool
    ) -> None:
        odd.answers = {"cancel": [cancel], "look": [GONE]}

        assert await open_at(odd.address).call_off("resp_1") == CalledOff(is_over=is_over)

    async def test_calling_off_does_not_wait_for_ever(
        self, odd: Odd, open_at: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("turnkeeper_worker.providers.background.CALL_OFF_SECONDS", 0.1)
        odd.answers = {"cancel": [None]}

        assert await open_at(odd.address).call_off("resp_1") == CalledOff(is_over=False)
