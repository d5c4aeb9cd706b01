"""Calls over HTTP: one client per provider, two watchdogs per call, every failure a value."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, TypeAlias, cast
from urllib.parse import unquote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic_core import from_json

from turnkeeper_worker.failures import Failure, Phase, Signal, describe
from turnkeeper_worker.providers.interface import Failed, Result
from turnkeeper_worker.providers.sse import MAX_EVENT_BYTES, SseDecoder
from turnkeeper_worker.providers.stream import EventStream

MAX_ERROR_BODY_BYTES = 64 * 1024
"""What is read of an error's body; a classifier needs a sentence, not a page."""

DONE = b"[DONE]"
"""The frame by which some servers end any stream; it is not JSON."""

LAST_WORDS_SECONDS = 5.0
"""How long an answer that is whole waits for its usage and for the end of the stream."""

USER_AGENT = "turnkeeper"

GRAIN = 0.1
"""By this share a silence may last longer: to put a watchdog off takes as long as to hear an event."""
GRAIN_SECONDS = 1.0
"""And by no more than this."""


Listen: TypeAlias = Callable[[httpx.Response, asyncio.Timeout], Awaitable[Result]]
"""Hears the events of a stream whose head has come, and puts the watchdog off while they do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The two watchdogs of a call, in seconds; None lets it wait for ever."""

    startup: float | None
    """From before the connection is opened until the first event."""
    silence: float | None
    """Between two events; keep-alive pings count."""


def endpoint(base_url: str, path: str, query: Iterable[tuple[str, str]] = ()) -> str:
    """Return the URL of *path* below *base_url*, whose query, which httpx would tear apart, stays in its place.

    A name and password become a header; see `open_client`.

    >>> endpoint("https://me:secret@a.example/openai/?api-version=1", "/chat/completions", [("stream", "true")])
    'https://a.example/openai/chat/completions?api-version=1&stream=true'
    """
    parts = urlsplit(base_url)
    queries = (parts.query, urlencode(list(query)))
    return parts._replace(
        netloc=parts.netloc.rpartition("@")[2],
        path=parts.path.rstrip("/") + path,
        query="&".join(filter(None, queries)),
    ).geturl()


@dataclass(frozen=True, slots=True)
class Client:
    """The connections to one server, and what every request says.

    It takes httpx's requests straight to a transport. httpx's own client would keep cookies, which carry state
    from one tenant's call to the next, and hand each piece of a stream through three iterators.
    """

    transport: httpx.AsyncBaseTransport
    headers: Mapping[str, str]

    def request(
        self, method: str, url: httpx.URL | str, headers: Mapping[str, str], content: bytes | None = None
    ) -> httpx.Request:
        """Build a request; its own *headers* go before the client's."""
        return httpx.Request(method, url, headers={**self.headers, **headers}, content=content)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return with the head of the response; whoever called closes it."""
        response = await self.transport.handle_async_request(request)
        response.request = request
        return response

    async def close(self) -> None:
        """Give the connections back."""
        await self.transport.aclose()


def open_client(headers: Mapping[str, str], base_url: str, *, http2: bool = False) -> Client:
    """Build a client for one server, without limits of its own: the worker's concurrency is the limit.

    aiohttp's parser is written in C; measured, it takes a quarter of the CPU time of httpx's own transport.
    It speaks HTTP/1.1 only.
    """
    proxy = _proxy_for(base_url)
    # The watchdogs are ours; the transport's, which would fire first and tell less, wait for ever by themselves.
    transport = Http2Transport(proxy) if http2 else AiohttpTransport(client=_open_session, proxy=proxy)
    return Client(transport, {"User-Agent": USER_AGENT, **headers, **_password_in(base_url)})


def _password_in(url: str) -> dict[str, str]:
    """Return the header for the name and password that a URL holds; aiohttp allows no other one beside them."""
    parts = urlsplit(url)
    if not (parts.username or parts.password):
        return {}
    words = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}


def _proxy_for(url: str) -> httpx.Proxy | None:
    """Look up once which proxy the environment names for *url*; the session would do so for each call.

    It would also read `~/.netrc`, and send a password from there to a provider that needs no key.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return httpx.Proxy(proxy) if proxy and not proxy_bypass(parts.netloc) else None


class Http2Transport(httpx.AsyncBaseTransport):
    """HTTP/2, with a connection of its own for each call.

    On a shared one a call cannot be called off: httpcore forgets the stream and tells nobody, the provider goes on
    and charges, and after a hundred of them the connection takes no more (https://github.com/encode/httpcore/pull/1098).
    """

    def __init__(self, proxy: httpx.Proxy | None = None) -> None:
        self._tls = httpx.create_ssl_context()
        self._proxy = proxy

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* over a new connection, which is closed with the response."""
        # Without TLS the two sides have no way to agree on the version.
        has_tls = request.url.scheme == "https"
        transport = httpx.AsyncHTTPTransport(verify=self._tls, http1=has_tls, http2=True, proxy=self._proxy)
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await transport.aclose()
            raise
        response.stream = _LastStream(cast("httpx.AsyncByteStream", response.stream), transport)
        return response


class _LastStream(httpx.AsyncByteStream):
    """The only stream of a connection, which ends with it."""

    def __init__(self, stream: httpx.AsyncByteStream, transport: httpx.AsyncHTTPTransport) -> None:
        self._stream = stream
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._stream:
            yield data

    async def aclose(self) -> None:
        """Close the connection."""
        try:
            await self._stream.aclose()
        finally:
            await self._transport.aclose()


def _open_session() -> aiohttp.ClientSession:
    # limit=0: none. The cookie jar would carry state from one tenant's call to the next.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


async def stream_events(client: Client, request: httpx.Request, stream: EventStream, timeouts: Timeouts) -> Result:
    """Send *request* and let *stream* hear the events, until one of them or a failure ends it."""
    listen = partial(_listen, stream=stream, silence=timeouts.silence)
    # A task of its own: each piece of a stream would go through the dozen coroutines of the turn that wait for it.
    return await asyncio.create_task(converse(client, request, stream, startup=timeouts.startup, listen=listen))


async def converse(
    client: Client,
    request: httpx.Request,
    stream: EventStream,
    *,
    startup: float | None,
    listen: Listen,
) -> Result:
    """Send *request* and let *listen* hear the stream that comes; without one, state why in the name of *stream*.

    Args:
        client: Makes the connection.
        request: What is sent.
        stream: Knows the facts of what goes wrong.
        startup: How long the watchdog waits, in seconds, before *listen* puts it off for the first time.
        listen: Hears the stream; the transport's errors and the watchdog may strike in it.
    """
    try:
        # Armed before the connection is opened: a provider that does not even accept is silent too.
        async with asyncio.timeout(startup) as watchdog:
            response = await client.send(request)
            _tell_head(response, stream)
            try:
                return await _refusal(response, stream) or await listen(response, watchdog)
            finally:
                await response.aclose()
    except TimeoutError:
        return stream.lost(None, Signal.STREAM_SILENCE_TIMEOUT if stream.has_begun else Signal.STARTUP_TIMEOUT)
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        phase = Phase.MID_STREAM if stream.has_begun else Phase.BEFORE_RESPONSE
        return stream.lost(None, None, phase=phase, exceptions=describe(error))


def _tell_head(response: httpx.Response, stream: EventStream) -> None:
    """Tell of the head as soon as it is there; the stream may go on for minutes."""
    if response.request.method != "POST":
        # To come back to a response is no new call.
        return
    told = [(name.lower(), value) for name, value in response.headers.raw if _tells_of_limits(name.lower())]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in told}
    stream.listener.answered(response.status_code, headers)


def _tells_of_limits(name: bytes) -> bool:
    return b"ratelimit" in name or name == b"date"


async def _listen(
    response: httpx.Response, watchdog: asyncio.Timeout, *, stream: EventStream, silence: float | None
) -> Result:
    clock = asyncio.get_running_loop().time
    decoder = SseDecoder()
    grain = min(GRAIN_SECONDS, GRAIN * (silence or inf))
    look_at = clock()
    async for data in pieces(response):
        if (result := _hear(data, stream, decoder)) is not None:
            return result
        now = clock()
        if now >= look_at or stream.is_complete:
            patience = LAST_WORDS_SECONDS if stream.is_complete else silence
            watchdog.reschedule(None if patience is None else now + patience + grain)
            look_at = now + grain
    return stream.cut()


def pieces(response: httpx.Response) -> httpx.AsyncByteStream:
    """Return the body of a response as it comes; by itself, httpx hands each piece on through another iterator."""
    return cast("httpx.AsyncByteStream", response.stream)


def _hear(data: bytes, stream: EventStream, decoder: SseDecoder) -> Result | None:
    try:
        for payload in decoder.feed(data):
            if payload == DONE:
                return stream.done()
            if (result := stream.take(from_json(payload, allow_inf_nan=False))) is not None:
                return result
    except ValueError as error:
        return stream.broken(str(error))
    return None


async def _refusal(response: httpx.Response, stream: EventStream) -> Failed | None:
    """Return the failure that the response's head tells, or None where a stream follows."""
    content_type = response.headers.get("content-type", "")
    if response.status_code == httpx.codes.OK and not content_type.startswith(("text/html", "application/json")):
        return None
    body = await _read_some(response, MAX_ERROR_BODY_BYTES)
    signal = Signal.STREAM_TRUNCATED if response.status_code == httpx.codes.OK else None
    return stream.failed(
        body,
        signal,
        phase=Phase.RESPONSE,
        status=response.status_code,
        headers=dict(response.headers),
    )


async def _read_some(response: httpx.Response, most: int) -> bytes:
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) >= most:
            break
    return bytes(body[:most])


async def fetch_object(
    client: Client, request: httpx.Request, *, provider: str, seconds: float | None
) -> dict[str, Any] | Failure:
    """Send *request* and return the JSON object of its answer, or the facts of why there is none.

    Args:
        client: Makes the connection.
        request: What is sent.
        provider: In whose name a failure is stated.
        seconds: How long all of it may take; None waits for ever.
    """
    facts = partial(Failure, provider=provider, phase=Phase.RESUME)
    try:
        async with asyncio.timeout(seconds):
            response = await client.send(request)
            try:
                body = await _read_some(response, MAX_EVENT_BYTES)
            finally:
                await response.aclose()
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        return facts(exceptions=describe(error))
    answered = partial(facts, status=response.status_code, headers=dict(response.headers))
    if not response.is_success:
        return answered(body=body[:MAX_ERROR_BODY_BYTES])
    try:
        value = from_json(body, allow_inf_nan=False) if body else {}
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    return answered(signal=Signal.STREAM_TRUNCATED, body=body[:MAX_ERROR_BODY_BYTES])


def json_body(body: Mapping[str, Any]) -> bytes:
    """Encode a request's body once, compactly."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def bearer(key: str | None, base_url: str) -> dict[str, str]:
    """Return the headers by which OpenAI, and who imitates it, know their callers.

    >>> bearer("sk", "https://a.example/v1")
    {'Authorization': 'Bearer sk'}
    """
    if not key:
        return {}
    # Azure's dated endpoints know a key by a name of their own; its newer ones do not.
    dated = {"api-key": key} if "api-version=" in urlsplit(base_url).query else {}
    return {"Authorization": f"Bearer {key}"} | dated


def call_headers(request_id: str) -> dict[str, str]:
    """Return the headers that every streaming call carries."""
    return {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        # A compressed stream is buffered by whoever compresses it, and the words come late.
        "Accept-Encoding": "identity",
        "X-Client-Request-Id": request_id,
    }
