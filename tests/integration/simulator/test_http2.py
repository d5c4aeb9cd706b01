"""HTTP/2 in cleartext: real frames, as a client meets them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("h2", reason="only who speaks HTTP/2 needs the h2 package")

Script = Callable[..., str]
LastRequest = Callable[[], dict[str, Any]]

BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/responses": lambda text: {"model": "m", "input": text, "stream": True},
    "/v1/chat/completions": lambda text: {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    },
    "/v1/messages": lambda text: {
        "model": "m",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    },
}


@pytest.fixture
async def http2(url: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer sk-simulator", "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(base_url=url, headers=headers, http1=False, http2=True) as client:
        yield client


async def read(http2: httpx.AsyncClient, path: str, text: str, into: list[str]) -> None:
    async with http2.stream("POST", path, json=BODIES[path](text)) as answer:
        answer.raise_for_status()
        assert answer.http_version == "HTTP/2"
        async for line in answer.aiter_lines():
            into.append(line)  # noqa: PERF401  # what came before a fault must be kept


@pytest.mark.parametrize("path", BODIES)
async def test_many_answers_share_a_connection(http2: httpx.AsyncClient, script: Script, path: str) -> None:
    text = script({"type": "answer", "text": "All of it", "chunk_chars": 1})
    answers: list[list[str]] = [[] for _ in range(20)]

    await asyncio.gather(*(read(http2, path, f"{number} {text}", into) for number, into in enumerate(answers)))

    assert {len(lines) for lines in answers} == {len(answers[0])}
    assert all('"delta"' in "".join(lines) for lines in answers)


async def test_a_body_larger_than_the_window_arrives_both_ways(http2: httpx.AsyncClient, script: Script) -> None:
    text = script({"type": "answer", "text": "x" * 300_000, "chunk_chars": 10_000})
    body = {"model": "m", "input": [{"role": "user", "content": "y" * 300_000}, {"role": "user", "content": text}]}

    answer = await http2.post("/v1/responses", json=body)

    assert answer.json()["output"][0]["content"][0]["text"] == "x" * 300_000


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("code", "name"), [(2, "INTERNAL_ERROR"), (7, "REFUSED_STREAM"), (11, "ENHANCE_YOUR_CALM")]
)
async def test_a_stream_is_reset_in_mid_answer_with_any_code(
    http2: httpx.AsyncClient, script: Script, last_request: LastRequest, path: str, code: int, name: str
) -> None:
    text = script({"type": "reset_stream", "code": code, "at": 3, "text": "abcdef", "chunk_chars": 1})
    lines: list[str] = []

    with pytest.raises(httpx.RemoteProtocolError, match=rf"StreamReset.*({name}|error_code:{code})"):
        await read(http2, path, text, lines)

    assert sum('"delta"' in line and '"a' in line for line in lines) >= 1
    assert (last_request()["outcome"], last_request()["chunks"]) == ("reset_stream", 3)


async def test_the_connection_outlives_a_reset_stream(http2: httpx.AsyncClient, script: Script) -> None:
    text = script({"type": "reset_stream"})
    with pytest.raises(httpx.RemoteProtocolError):
        await read(http2, "/v1/responses", text, [])
    lines: list[str] = []

    await read(http2, "/v1/responses", text, lines)

    assert lines[-3] == "event: response.completed"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("code", "name"), [(0, "NO_ERROR"), (11, "ENHANCE_YOUR_CALM")])
async def test_a_server_says_go_away_in_mid_answer(
    http2: httpx.AsyncClient, script: Script, last_request: LastRequest, path: str, code: int, name: str
) -> None:
    text = script({"type": "go_away", "code": code, "at": 3})

    with pytest.raises(httpx.RemoteProtocolError, match=rf"ConnectionTerminated.*({name}|error_code:{code})"):
        await read(http2, path, text, [])

    assert (last_request()["outcome"], last_request()["chunks"]) == ("go_away", 3)


@pytest.mark.parametrize("fault", ["cut", "reset"])
async def test_the_whole_connection_may_break(http2: httpx.AsyncClient, script: Script, fault: str) -> None:
    with pytest.raises(httpx.TransportError):
        await read(http2, "/v1/responses", script({"type": fault}), [])


async def test_who_hangs_up_stops_the_answer(url: str, script: Script, last_request: LastRequest) -> None:
    text = script({"type": "stall"})
    headers = {"Authorization": "Bearer sk-simulator"}
    async with httpx.AsyncClient(base_url=url, headers=headers, http1=False, http2=True, timeout=0.2) as leaving:
        with pytest.raises(httpx.ReadTimeout):
            await leaving.post("/v1/responses", json={"model": "m", "input": text})

    async with asyncio.timeout(5):
        while last_request()["ended_at"] is None:  # noqa: ASYNC110  # the event is in another process
            await asyncio.sleep(0.01)
    assert last_request()["outcome"] == "client_disconnected"


@pytest.mark.parametrize(
    ("step", "error"), [("reset_stream", httpx.ReadError), ("go_away", httpx.RemoteProtocolError)]
)
async def test_before_http2_the_nearest_is_done(
    url: str, script: Script, step: str, error: type[httpx.TransportError]
) -> None:
    text = script({"type": step})
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer sk-simulator"}) as http1:
        with pytest.raises(error):
            await http1.post("/v1/responses", json={"model": "m", "input": text, "stream": True})
