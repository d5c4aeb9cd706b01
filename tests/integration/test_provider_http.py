"""A provider over real sockets, against the simulator in a process of its own: every end is a value."""

import asyncio
import re
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper.events import PartKind
from turnkeeper.messages import Message, Text
from turnkeeper_ops.services.ports import free_port
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.failures import Classified, Failure, Phase, Signal, classify
from turnkeeper_worker.providers import (
    Answer,
    Call,
    Failed,
    Provider,
    Running,
    open_providers,
    unusable,
)

KEY = "sk-simulator"


@dataclass
class Heard:
    """A listener that remembers."""

    begun: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    usage: dict[str, int] | None = None
    heads: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.begun, "the head is told before anything of the body"
        self.heads.append((status, dict(headers)))

    def started(self, response_id: str) -> None:
        self.begun.append(response_id)

    def said(self, kind: PartKind, text: str) -> None:
        if kind == "text":
            self.words.append(text)

    def counted(self, usage: dict[str, int]) -> None:
        self.usage = usage

    async def reached(self, running: Running) -> None:
        raise AssertionError(f"{running} runs in the background, and nobody asked for that")


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    """Return the address of a running simulator."""
    command = [sys.executable, "-m", "turnkeeper_ops.simulator", "--chunk-delay-ms", "0"]
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


Open = Callable[..., Provider]


@pytest.fixture(params=[False, True], ids=["http/1.1 over aiohttp", "httpx's own transport"])
async def provider(request: pytest.FixtureRequest, simulator: str) -> AsyncIterator[Open]:
    """Open the simulator as a provider, with either transport."""
    opened: list[Provider] = []

    def open_one(**config: Any) -> Provider:
        usual = {"base_url": f"{simulator}/v1", "api_key_env": "KEY", "http2": request.param}
        configured = {"openai": ProviderConfig.model_validate(usual | config)}
        opened.append(open_providers(configured, {"KEY": KEY})["openai"])
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


def asking(words: str, **rest: Any) -> Call:
    history = (Message(role="user", parts=(Text(text=words),)),)
    return Call(request_id=f"turn-{uuid4()}/1.1", model="m", history=history, **rest)


async def script(control: httpx.AsyncClient, *steps: dict[str, Any]) -> str:
    """Register steps; return a message that asks for them."""
    (await control.put("/scripts/mine", json={"steps": steps})).raise_for_status()
    return "Tell me of rivers sim:mine"


async def fails(provider: Provider, words: str, heard: Heard | None = None) -> tuple[Failure, Classified]:
    result = await provider.call(asking(words), heard or Heard())
    assert isinstance(result, Failed)
    return result.failure, classify(result.failure, now=datetime.now(UTC))


class TestAnswers:
    async def test_an_answer_comes_in_pieces_and_then_whole(self, provider: Open) -> None:
        heard = Heard()

        answer = await provider().call(asking("Tell me of rivers"), heard)

        assert isinstance(answer, Answer)
        assert "".join(heard.words) == answer.messages[0].text
        assert answer.messages[0].text == "I have read 1 user message. It says: “Tell me of rivers”."
        assert heard.begun == [answer.response_id]
        assert answer.can_anchor
        assert answer.usage is not None
        assert answer.usage["total_tokens"] == answer.usage["input_tokens"] + answer.usage["output_tokens"]
        assert heard.usage == answer.usage

    async def test_the_head_of_an_answer_and_of_a_refusal_tells_of_limits(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        heard, opened = Heard(), provider()
        (await control.put("/limit", json={"requests_per_second": 0.01, "burst": 1})).raise_for_status()
        try:
            await opened.call(asking("Hello"), heard)
            heard.begun.clear()
            await opened.call(asking("Hello"), heard)
        finally:
            await control.delete("/limit")

        assert [status for status, _ in heard.heads] == [200, 429]
        assert {headers["x-ratelimit-remaining-requests"] for _, headers in heard.heads} == {"0"}

    async def test_characters_that_the_network_tears_are_mended(self, provider: Open) -> None:
        answer = await provider().call(asking("Zürich, 東京 sim:drip"), Heard())

        assert isinstance(answer, Answer)
        assert "“Zürich, 東京 sim:drip”" in answer.messages[0].text

    async def test_a_chained_call_is_answered_from_the_whole_conversation(self, provider: Open) -> None:
        opened = provider()
        first = await opened.call(asking("My name is Ada"), Heard())
        assert isinstance(first, Answer)

        second = await opened.call(asking("Who am I?", previous_response_id=first.response_id), Heard())

        assert isinstance(second, Answer)
        assert "The first says: “My name is Ada”" in second.messages[0].text

    async def test_both_sides_can_name_the_call(self, provider: Open, control: httpx.AsyncClient) -> None:
        turn = f"turn-{uuid4()}"

        await provider().call(replace(asking("Hello"), request_id=f"{turn}/1.1"), Heard())

        logged = (await control.get("/requests", params={"turn": turn})).json()["requests"]
        assert len(logged) == 1

    async def test_many_calls_share_a_provider(self, provider: Open) -> None:
        opened = provider()

        answers = await asyncio.gather(*(opened.call(asking(f"Number {n}"), Heard()) for n in range(50)))

        texts = [answer.messages[0].text for answer in answers if isinstance(answer, Answer)]
        assert texts == [f"I have read 1 user message. It says: “Number {n}”." for n in range(50)]


class TestRefusals:
    async def test_a_429_keeps_its_headers_and_its_body(self, provider: Open, control: httpx.AsyncClient) -> None:
        words = await script(control, {"type": "status", "status": 429, "headers": {"Retry-After": "7"}})

        failure, classified = await fails(provider(), words)

        assert (failure.status, failure.phase, failure.signal) == (429, Phase.RESPONSE, None)
        assert (classified.error.kind, classified.error.status_code) == (ErrorKind.RATE_LIMIT, 429)
        assert classified.hint is not None
        assert classified.hint.wait == timedelta(seconds=7)
        assert classified.code == "rate_limit_exceeded"
        assert failure.headers["x-request-id"].startswith("req_")

    @pytest.mark.parametrize(
        ("name", "kind", "retryable"),
        [
            pytest.param("unauthorized", ErrorKind.AUTH, False),
            pytest.param("quota", ErrorKind.USAGE_LIMIT, False),
            pytest.param("context-overflow", ErrorKind.CONTEXT_OVERFLOW, False),
            pytest.param("content-filter", ErrorKind.CONTENT_FILTER, False),
            pytest.param("overloaded", ErrorKind.OVERLOADED, True),
            pytest.param("server-error", ErrorKind.GENERIC, True),
            pytest.param("bad-gateway", ErrorKind.TIMEOUT, True),
            pytest.param("error-event", ErrorKind.GENERIC, True),
            pytest.param("failed", ErrorKind.GENERIC, True),
            pytest.param("empty", ErrorKind.GENERIC, True),
            pytest.param("html", ErrorKind.TIMEOUT, True),
            pytest.param("unfinished", ErrorKind.TIMEOUT, True),
            pytest.param("malformed", ErrorKind.TIMEOUT, True),
            pytest.param("cut", ErrorKind.TIMEOUT, True),
            pytest.param("reset", ErrorKind.TIMEOUT, True),
        ],
    )
    async def test_what_goes_wrong_is_named(
        self, provider: Open, name: str, kind: ErrorKind, retryable: bool
    ) -> None:
        _, classified = await fails(provider(), f"Tell me of rivers sim:{name}")

        assert (classified.error.kind, classified.error.retryable) == (kind, retryable)
        assert KEY not in f"{classified}"

    async def test_a_web_page_under_200_is_no_stream(self, provider: Open) -> None:
        failure, classified = await fails(provider(), "Hello sim:html")

        assert (failure.status, failure.phase, failure.signal) == (200, Phase.RESPONSE, Signal.STREAM_TRUNCATED)
        assert classified.error.status_code is None

    async def test_a_large_error_page_is_not_read_to_its_end(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        words = await script(control, {"type": "status", "status": 500, "body": "x" * 1_000_000})

        failure, _ = await fails(provider(), words)

        assert failure.body == b"x" * 65_536

    async def test_a_wrong_key_is_not_repeated(self, simulator: str) -> None:
        config = ProviderConfig(base_url=f"{simulator}/v1", api_key_env="KEY")
        opened = open_providers({"openai": config}, {"KEY": "sk-wrong-hunter2-hunter2"})["openai"]

        _, classified = await fails(opened, "Hello")
        await opened.close()

        assert classified.error.kind is ErrorKind.AUTH
        assert "hunter2" not in f"{classified}"


class TestBrokenConnections:
    @pytest.mark.parametrize("fault", ["cut", "reset"])
    async def test_a_stream_that_breaks_in_the_middle_tells_how_far_it_came(
        self, provider: Open, control: httpx.AsyncClient, fault: str
    ) -> None:
        heard = Heard()
        words = await script(control, {"type": fault, "at": 3, "chunk_delay_ms": 20})

        failure, classified = await fails(provider(), words, heard)

        assert heard.words
        assert (failure.phase, failure.visible, failure.status) == (Phase.MID_STREAM, True, None)
        assert failure.exceptions
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)

    @pytest.mark.parametrize("fault", ["cut", "reset"])
    @pytest.mark.parametrize("at", ["before_headers", "before_first_event"])
    async def test_a_connection_that_breaks_before_the_first_word_shows_nothing(
        self, provider: Open, control: httpx.AsyncClient, fault: str, at: str
    ) -> None:
        words = await script(control, {"type": fault, "at": at})

        failure, classified = await fails(provider(), words)

        assert not failure.visible
        assert failure.phase is not Phase.MID_STREAM
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)

    async def test_a_stream_that_ends_properly_but_too_early_was_cut(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        failure, _ = await fails(provider(), await script(control, {"type": "end", "at": 2}))

        assert (failure.signal, failure.phase, failure.exceptions) == (
            Signal.STREAM_TRUNCATED,
            Phase.MID_STREAM,
            (),
        )

    async def test_a_refused_connection_is_worth_another_attempt(self, provider: Open) -> None:
        nowhere = f"http://127.0.0.1:{free_port()}/v1"

        failure, classified = await fails(provider(base_url=nowhere), "Hello")

        assert (failure.phase, failure.status, failure.visible) == (Phase.BEFORE_RESPONSE, None, False)
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)

    async def test_a_host_that_does_not_exist_is_a_value_too(self, provider: Open) -> None:
        failure, classified = await fails(provider(base_url="http://nowhere.invalid/v1"), "Hello")

        assert failure.phase is Phase.BEFORE_RESPONSE
        assert classified.error.kind in {ErrorKind.TIMEOUT, ErrorKind.CONFIG}


class TestWatchdogs:
    async def test_a_provider_that_does_not_begin_is_given_up(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        words = await script(control, {"type": "stall", "at": "before_headers"})

        failure, classified = await fails(provider(startup_timeout_seconds=0.2), words)

        assert (failure.signal, failure.phase) == (Signal.STARTUP_TIMEOUT, Phase.BEFORE_FIRST_EVENT)
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.STARTUP_TIMEOUT, True)

    async def test_a_provider_that_falls_silent_is_given_up(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        heard = Heard()
        words = await script(control, {"type": "stall", "at": 2})

        failure, classified = await fails(provider(silence_timeout_seconds=0.2), words, heard)

        assert heard.words
        assert (failure.signal, failure.phase) == (Signal.STREAM_SILENCE_TIMEOUT, Phase.MID_STREAM)
        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.STREAM_SILENCE_TIMEOUT, True)

    async def test_slow_words_are_no_silence(self, provider: Open, control: httpx.AsyncClient) -> None:
        words = await script(control, {"type": "answer", "chunk_delay_ms": 100})

        answer = await provider(startup_timeout_seconds=0.3, silence_timeout_seconds=0.3).call(
            asking(words), Heard()
        )

        assert isinstance(answer, Answer)

    async def test_without_watchdogs_a_call_waits(self, provider: Open, control: httpx.AsyncClient) -> None:
        words = await script(control, {"type": "stall", "at": 2, "seconds": 0.3})

        answer = await provider(startup_timeout_seconds=0, silence_timeout_seconds=0).call(asking(words), Heard())

        assert isinstance(answer, Answer)

    @pytest.mark.parametrize(
        ("usual", "own", "signal"),
        [
            pytest.param(0, {"startup_timeout_seconds": 0.2}, Signal.STARTUP_TIMEOUT, id="its own"),
            pytest.param(0.2, {"silence_timeout_seconds": 9}, Signal.STARTUP_TIMEOUT, id="the provider's"),
        ],
    )
    async def test_a_model_may_have_watchdogs_of_its_own(
        self, provider: Open, control: httpx.AsyncClient, usual: float, own: dict[str, float], signal: Signal
    ) -> None:
        words = await script(control, {"type": "stall", "at": "before_headers"})

        failure, _ = await fails(provider(startup_timeout_seconds=usual, models={"m": own}), words)

        assert failure.signal is signal

    async def test_a_model_may_do_without_the_providers_watchdogs(
        self, provider: Open, control: httpx.AsyncClient
    ) -> None:
        words = await script(control, {"type": "stall", "at": 2, "seconds": 0.4})
        off = {"startup_timeout_seconds": 0, "silence_timeout_seconds": 0}
        opened = provider(startup_timeout_seconds=0.1, silence_timeout_seconds=0.1, models={"m": off})

        answer = await opened.call(asking(words), Heard())

        assert isinstance(answer, Answer)

    async def test_a_cancel_reaches_the_socket_at_once(self, provider: Open, control: httpx.AsyncClient) -> None:
        words = await script(control, {"type": "stall", "at": 2})
        await control.delete("/requests")
        heard = Heard()
        task = asyncio.create_task(provider().call(asking(words), heard))

        async def outcome() -> Any:
            (entry,) = (await control.get("/requests")).json()["requests"]
            return entry["ended_at"] and entry["outcome"]

        async def is_speaking() -> bool:
            return bool(heard.words)

        await until(is_speaking)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert await until(outcome) == "client_disconnected"


class TestUnusable:
    @pytest.mark.parametrize(
        ("environment", "words"),
        [
            pytest.param({}, "KEY is not set", id="no key"),
            pytest.param({"KEY": "schlüssel"}, "characters that no API key has", id="no ASCII"),
            pytest.param({"KEY": "a\nb"}, "characters that no API key has", id="two lines"),
        ],
    )
    async def test_a_provider_without_a_usable_key_says_so_without_a_network(
        self, environment: dict[str, str], words: str
    ) -> None:
        config = ProviderConfig(base_url="http://127.0.0.1:1", api_key_env="KEY")

        _, classified = await fails(open_providers({"x": config}, environment)["x"], "Hello")

        assert (classified.error.kind, classified.error.retryable) == (ErrorKind.MISSING_KEY, False)
        assert words in (classified.error.detail or "")

    async def test_what_is_not_configured_is_a_matter_of_configuration(self) -> None:
        _, classified = await fails(unusable("mine", Signal.UNKNOWN_PROVIDER, "Add [providers.mine]."), "Hello")

        assert (classified.error.kind, classified.error.detail) == (ErrorKind.CONFIG, "Add [providers.mine].")


async def until(look: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.01)


async def test_a_provider_that_accepts_and_says_nothing_is_given_up() -> None:
    """Not even a connection's handshake is trusted to end by itself."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
        config = ProviderConfig(base_url=address, startup_timeout_seconds=0.2)
        opened = open_providers({"x": config}, {})["x"]

        failure, _ = await fails(opened, "Hello")

        assert failure.signal is Signal.STARTUP_TIMEOUT
        await opened.close()


class TestProxy:
    """A server that writes down what it is asked for, and refuses it."""

    @pytest.fixture
    async def asked(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
        asked: list[str] = []

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\nSet-Cookie: who=ada\r\n\r\n"
            )
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            monkeypatch.setenv("HTTP_PROXY", f"http://{host}:{port}")
            monkeypatch.setenv("http_proxy", f"http://{host}:{port}")
            yield asked

    async def status(self, *, calls: int = 1, **config: Any) -> int | None:
        configured = {"openai": ProviderConfig.model_validate({"base_url": "http://provider.example/v1"} | config)}
        provider = open_providers(configured, {})["openai"]
        try:
            failures = [(await fails(provider, "Hi"))[0] for _ in range(calls)]
        finally:
            await provider.close()
        return failures[-1].status

    async def test_a_call_takes_the_proxy_that_the_environment_names(self, asked: list[str]) -> None:
        assert await self.status() == 403

        assert [one.splitlines()[0] for one in asked] == ["POST http://provider.example/v1/responses HTTP/1.1"]

    async def test_a_host_that_the_environment_excepts_is_called_directly(
        self, asked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "provider.example")
        monkeypatch.setenv("no_proxy", "provider.example")

        assert await self.status() is None

        assert asked == []

    async def test_passwords_for_other_programs_are_not_sent(
        self, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine provider.example login me password secret\n", encoding="utf-8")
        netrc.chmod(0o600)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(netrc))

        assert await self.status(api_key_env=None) == 403

        assert "authorization" not in asked[0].lower()

    @pytest.mark.parametrize("http2", [False, True], ids=["aiohttp", "httpx's own transport"])
    async def test_no_call_carries_what_the_answer_to_another_one_left_behind(
        self, asked: list[str], http2: bool
    ) -> None:
        await self.status(calls=2, http2=http2)

        assert len(asked) == 2
        assert "cookie" not in asked[1].lower()

    @pytest.mark.parametrize("http2", [False, True], ids=["aiohttp", "httpx's own transport"])
    async def test_a_password_in_the_address_is_sent(self, asked: list[str], http2: bool) -> None:
        await self.status(base_url="http://me:s%21cret@provider.example/v1", http2=http2)

        assert f"authorization: basic {b64encode(b'me:s!cret').decode()}".lower() in asked[0].lower()
