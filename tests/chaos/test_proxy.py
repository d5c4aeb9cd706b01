"""The proxy that the monkeys pull at, between real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from turnkeeper_ops.services.ports import LOOPBACK, free_port

from .mischief import Weather
from .proxy import Proxy

PATIENCE_SECONDS = 5.0
SOON_SECONDS = 0.2


@dataclass(slots=True)
class Client:
    """Somebody who says a line through the proxy and waits for its echo."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        return await self.hear()

    async def hear(self) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readline()


@asynccontextmanager
async def client_of(proxy: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionResetError):
        while line := await reader.readline():
            writer.write(line)
    writer.close()


@asynccontextmanager
async def _server() -> AsyncIterator[int]:
    port = free_port()
    server = await asyncio.start_server(_echo, LOOPBACK, port)
    try:
        yield port
    finally:
        server.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with _server() as port, Proxy(port) as proxy:
        yield proxy


async def test_in_fair_weather_everything_passes_and_the_end_too(proxy: Proxy) -> None:
    async with client_of(proxy) as client:
        echo = await client.ask(b"hello\n")
        client.writer.write_eof()
        end = await client.hear()

    assert (echo, end) == (b"hello\n", b"")


async def test_a_refusing_proxy_resets_what_is_open_and_lets_nobody_in(proxy: Proxy) -> None:
    async with client_of(proxy) as client:
        await client.ask(b"hello\n")

        async with proxy.under(Weather.REFUSE):
            with pytest.raises(ConnectionResetError):
                await client.hear()
            with pytest.raises(ConnectionRefusedError):
                await client_of(proxy).__aenter__()

    async with client_of(proxy) as client:
        assert await client.ask(b"again\n") == b"again\n"


async def test_a_resetting_proxy_lets_newcomers_in(proxy: Proxy) -> None:
    async with client_of(proxy) as client:
        await client.ask(b"hello\n")

        async with proxy.under(Weather.RESET), client_of(proxy) as newcomer:
            with pytest.raises(ConnectionResetError):
                await client.hear()
            assert await newcomer.ask(b"again\n") == b"again\n"


async def test_a_black_hole_swallows_nothing_for_good(proxy: Proxy) -> None:
    async with AsyncExitStack() as everybody:
        client = await everybody.enter_async_context(client_of(proxy))
        await client.ask(b"hello\n")

        async with proxy.under(Weather.BLACKHOLE):
            newcomer = await everybody.enter_async_context(client_of(proxy))
            answers = [asyncio.create_task(one.ask(b"again\n")) for one in (client, newcomer)]
            done, _ = await asyncio.wait(answers, timeout=SOON_SECONDS)
        heard = await asyncio.gather(*answers)

    assert not done
    assert heard == [b"again\n"] * 2


async def test_a_server_that_is_away_is_told_by_a_reset() -> None:
    async with Proxy(free_port()) as proxy, client_of(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await client.hear()


async def test_a_proxy_that_is_closed_in_bad_weather_stays_closed() -> None:
    async with _server() as port:
        async with Proxy(port) as proxy:
            weather = proxy.under(Weather.REFUSE)
            await weather.__aenter__()
        await weather.__aexit__(None, None, None)

        with pytest.raises(ConnectionRefusedError):
            await client_of(proxy).__aenter__()


def test_an_address_leads_through_the_proxy_with_its_user_and_path() -> None:
    proxy = Proxy(1)

    assert proxy.through("redis://:secret@127.0.0.1:6379/1") == f"redis://:secret@127.0.0.1:{proxy.port}/1"
