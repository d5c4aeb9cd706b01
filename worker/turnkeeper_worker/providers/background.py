"""Background responses: asked for once, and followed over as many connections as it takes.

The provider goes on whatever becomes of our connection, and charges once.  What breaks a connection is therefore
no failure here: we come back to the response, and judge how that ends.

```
 new ────→ create ─┐            ┌─→ resume behind the last event ─┐
                   ├→ goes on ──┤                                 ├─→ over: judged
 running ─→ look ──┘     ↑      └─→ look, where no stream is left ┤
                         └──────── goes on, or out of reach ──────┘
```
"""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from random import Random
from typing import Any, Final, TypeAlias, assert_never
from urllib.parse import quote

import httpx
from pydantic_core import from_json

from turnkeeper_worker import backoff
from turnkeeper_worker.failures import Failure, Phase, Signal, classify
from turnkeeper_worker.providers.http import (
    DONE,
    Client,
    Timeouts,
    call_headers,
    converse,
    endpoint,
    fetch_object,
    pieces,
)
from turnkeeper_worker.providers.interface import Answer, Call, CalledOff, Failed, Listener, Result, Running
from turnkeeper_worker.providers.openai_responses import (
    STATUSES,
    BackgroundStream,
    included,
    read_usage,
    status_of,
)
from turnkeeper_worker.providers.sse import SseDecoder

CALL_OFF_SECONDS = 5.0
"""For a cancel and what belongs to it: whoever calls off has something else to do."""
UNPRODUCTIVE_STREAMS = 3
"""After so many streams in a row that told nothing new, the response is only looked at."""

_JSON: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
_PASSING = frozenset({408, 425, 429})
"""Refusals that say nothing about the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long is waited for what, in seconds."""

    queue: float = inf
    """For a response that is `queued`, from its beginning."""
    reply: float = 30.0
    """For the head of a stream, and for a response that is looked at."""
    outage: float = 600.0
    """For a provider that is out of reach, where no limit is set for silence."""
    first_pause: float = 0.25
    """Before coming back to what told nothing new; it doubles with each time."""
    longest_pause: float = 2.0
    """Between two looks at a response that goes on."""
    longest_absence: float = 15.0
    """Between two tries to reach the provider."""
    rng: Random = field(default_factory=Random)
    """Spreads the many that come back after one outage."""

    def pause(self, number: int, longest: float) -> float:
        """Return the pause before coming back for this time in a row; the first is 1."""
        base, cap = timedelta(seconds=self.first_pause), timedelta(seconds=longest)
        return backoff.delay(number, base=base, cap=cap, rng=self.rng).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The responses of one provider, by their ids."""

    client: Client
    provider: str
    url: str
    """Where they are created, and below which they are found."""

    def stream(self, response_id: str, call: Call, *, after: int) -> httpx.Request:
        """Return the request for the events behind the sequence number *after*."""
        url = self._url(response_id, query=[("stream", "true"), ("starting_after", str(after)), *_include(call)])
        return self.client.request("GET", url, call_headers(call.request_id))

    async def retrieve(self, response_id: str, call: Call, *, seconds: float) -> dict[str, Any] | Failure:
        """Return the response as it is now, or the facts of why we do not know."""
        found = await self._ask("GET", self._url(response_id, query=_include(call)), seconds)
        if isinstance(found, Failure) or status_of(found) in STATUSES:
            return found
        # Whoever answered, it was not about a response.
        return Failure(provider=self.provider, phase=Phase.RESUME, signal=Signal.STREAM_TRUNCATED, body=found)

    async def call_off(self, response_id: str) -> CalledOff:
        """Cancel a response; see `Provider.call_off`."""
        try:
            async with asyncio.timeout(CALL_OFF_SECONDS):
                found = await self._ask("POST", self._url(response_id, "/cancel"))
                if isinstance(found, Failure) and not _is_refused(found):
                    return CalledOff(is_over=False)
                if isinstance(found, Failure):
                    # It is over already, or gone; what it has cost may be known all the same.
                    found = await self._ask("GET", self._url(response_id))
        except TimeoutError:
            return CalledOff(is_over=False)
        return CalledOff(
            is_over=True, usage=None if isinstance(found, Failure) else read_usage(found.get("usage"))
        )

    async def _ask(self, method: str, url: str, seconds: float | None = None) -> dict[str, Any] | Failure:
        request = self.client.request(method, url, _JSON)
        return await fetch_object(self.client, request, provider=self.provider, seconds=seconds)

    def _url(self, response_id: str, below: str = "", query: Iterable[tuple[str, str]] = ()) -> str:
        return endpoint(self.url, f"/{quote(response_id, safe='')}{below}", query)


def _is_refused(failure: Failure) -> bool:
    """Whether the provider has refused for good what it was asked."""
    status = failure.status or 0
    return httpx.codes.is_client_error(status) and status not in _PASSING


def _include(call: Call) -> list[tuple[str, str]]:
    return [("include[]", one) for one in included(call)]


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class GoesOn:
    """The response is not over."""


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """Nobody told how the response is."""

    failure: Failure


News: TypeAlias = Result | GoesOn | OutOfReach


class _NotKept(Exception):
    """The listener did not keep how far the response is."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error
        """What it raised: bare, it would pass for an error of the connection on which we listen."""


@dataclass(slots=True, kw_only=True)
class Background:
    """Sees one background response through to its end.  Belongs to one call."""

    responses: Responses
    call: Call
    listener: Listener
    stream: BackgroundStream
    timeouts: Timeouts
    patience: Patience
    _began_at: datetime | None = None
    _kept: int | None = None
    """The cursor that the listener was told last."""
    _may_resume: bool = True
    _is_connected: bool = False
    _idle: int = 0
    """How many times in a row nothing new was told."""
    _missed: int = 0
    """How many times in a row the provider was out of reach."""
    _alive_at: float = field(default_factory=_now)
    """When the provider gave its last sign of life."""

    async def create(self, request: httpx.Request) -> Result:
        """Ask for a response, and see it through.  Raises what `listener.reached` raises."""
        return await self._see_through(self._create(request))

    async def come_back(self, running: Running) -> Result:
        """See a response through that another call asked for.  Raises what `listener.reached` raises."""
        self.stream.response_id, self.stream.cursor = running.response_id, running.cursor
        self._began_at, self._kept = running.began_at, running.cursor
        return await self._see_through(self._look())

    async def _see_through(self, first: Awaitable[News]) -> Result:
        try:
            news = await first
            while not isinstance(news, Answer | Failed):
                pause = self._pause_after(news)
                if isinstance(news, OutOfReach) and self._is_too_long(pause):
                    return replace(self._failed(news.failure), goes_on=True)
                await asyncio.sleep(pause)
                news = await self._follow()
        except _NotKept as not_kept:
            raise not_kept.error from None
        return news

    async def _create(self, request: httpx.Request) -> News:
        """Ask for the response; before it has an id, there is nothing to come back to."""
        result = await self._converse(request, startup=self.timeouts.startup)
        return await self._weigh(result) if self.stream.response_id else result

    async def _follow(self) -> News:
        """Go on with the response, by its stream while there is one to go on with."""
        if self._has_stream and not self._is_overdue:
            return await self._resume()
        news = await self._look()
        if isinstance(news, GoesOn):
            self._idle += 1
        return news

    async def _resume(self) -> News:
        """Take the stream up again, behind the last event that was heard."""
        cursor = self.stream.resume()
        request = self.responses.stream(self._id, self.call, after=cursor)
        result = await self._converse(request, startup=self.patience.reply)
        if self._is_connected or isinstance(result, Answer):
            self._idle = 0 if self.stream.cursor > cursor else self._idle + 1
            return await self._weigh(result)
        if _is_refused(result.failure) or result.failure.status == httpx.codes.OK:
            # Too old to be streamed, or never a stream.
            self._may_resume = False
            return GoesOn()
        return self._out_of_reach(result.failure)

    async def _look(self) -> News:
        """Look at the response itself: judge it where it is over, and give up where it is queued too long."""
        found = await self.responses.retrieve(self._id, self.call, seconds=self.patience.reply)
        if not isinstance(found, Failure):
            self._is_there()
            return self.stream.find(found) or (await self._give_up() if self._is_overdue else GoesOn())
        if found.status in {401, 403}:
            return self._failed(found)
        if _is_refused(found):
            return self._failed(replace(found, signal=Signal.RESPONSE_GONE))
        return self._out_of_reach(found)

    async def _weigh(self, result: Result) -> News:
        """Tell the end of the response from the end of a connection."""
        if self.stream.is_over or isinstance(result, Answer):
            return result
        if result.failure.signal is Signal.SSE_ERROR_EVENT:
            return await self._verify(result)
        if result.failure.signal is not Signal.STREAM_SILENCE_TIMEOUT:
            # What breaks was there until then.
            self._is_there()
        return GoesOn()

    async def _verify(self, failed: Failed) -> Result:
        """Ask whether an error has ended the response, or merely the stream that told of it."""
        match await self._look():
            case Answer() as answer:
                return answer
            case Failed(usage=usage):
                return replace(failed, usage=usage)
            case GoesOn() | OutOfReach():
                return replace(failed, goes_on=True)
            case other:
                assert_never(other)

    async def _give_up(self) -> Failed:
        called_off = await self.responses.call_off(self._id)
        body = {"message": f"The response was still queued after {self.patience.queue:g} s."}
        failed = self.stream.failed(body, Signal.STARTUP_TIMEOUT)
        return replace(failed, usage=called_off.usage)

    async def _converse(self, request: httpx.Request, *, startup: float | None) -> Result:
        self._is_connected = False
        return await converse(self.responses.client, request, self.stream, startup=startup, listen=self._listen)

    async def _listen(self, response: httpx.Response, watchdog: asyncio.Timeout) -> Result:
        self._is_connected = True
        self._is_there()
        if self.stream.has_begun:
            watchdog.reschedule(self._deadline)
        decoder = SseDecoder()
        async for data in pieces(response):
            # The time that the listener takes is no silence of the provider's.
            watchdog.reschedule(None)
            if (result := await self._hear(data, decoder)) is not None:
                return result
            self._is_there()
            watchdog.reschedule(self._deadline)
        return self.stream.cut()

    async def _hear(self, data: bytes, decoder: SseDecoder) -> Result | None:
        try:
            for payload in decoder.feed(data):
                if payload == DONE:
                    return self.stream.done()
                if (result := self.stream.take(from_json(payload, allow_inf_nan=False))) is not None:
                    return result
                if self._kept is None:
                    # Before anything is said: words that nobody could come back to would be paid for twice.
                    await self._keep()
        except ValueError as error:
            return self.stream.broken(str(error))
        await self._keep()
        return None

    async def _keep(self) -> None:
        """Let the listener keep how far the response is, where that is news."""
        cursor = self.stream.cursor
        if self.stream.response_id is None or cursor == self._kept:
            return
        self._began_at = self._began_at or datetime.now(UTC)
        try:
            await self.listener.reached(Running(response_id=self._id, began_at=self._began_at, cursor=cursor))
        except Exception as error:
            raise _NotKept(error) from error
        self._kept = cursor

    @property
    def _id(self) -> str:
        return self.stream.response_id or ""

    @property
    def _has_stream(self) -> bool:
        """Whether there is a stream that may tell more, and a place in it to begin from."""
        may_tell = self._may_resume and self._idle < UNPRODUCTIVE_STREAMS
        return may_tell and self.stream.has_begun and self.stream.cursor >= 0 and not self.stream.is_told

    @property
    def _is_overdue(self) -> bool:
        return self.stream.is_queued and self._queue_left <= 0

    @property
    def _queue_left(self) -> float:
        """The seconds that the response may still be queued, by the wall clock: it outlives workers."""
        began_at = self._began_at or datetime.now(UTC)
        return self.patience.queue - (datetime.now(UTC) - began_at).total_seconds()

    @property
    def _deadline(self) -> float | None:
        """When the connection is given up, by the loop's clock; None is never."""
        patience = self._queue_left if self.stream.is_queued else (self.timeouts.silence or inf)
        return None if patience == inf else _now() + max(patience, 0)

    def _is_there(self) -> None:
        self._alive_at, self._missed = _now(), 0

    def _out_of_reach(self, failure: Failure) -> OutOfReach:
        self._missed += 1
        return OutOfReach(failure)

    def _pause_after(self, news: GoesOn | OutOfReach) -> float:
        match news:
            case GoesOn():
                return self.patience.pause(self._idle, self.patience.longest_pause) if self._idle else 0
            case OutOfReach(failure):
                hint = classify(failure, now=datetime.now(UTC)).hint
                pause = self.patience.pause(self._missed, self.patience.longest_absence)
                return max(pause, hint.wait.total_seconds() if hint else 0)
            case other:
                assert_never(other)

    def _is_too_long(self, pause: float) -> bool:
        """Whether the provider would be silent for too long at the end of *pause*."""
        return _now() + pause > self._alive_at + (self.timeouts.silence or self.patience.outage)

    def _failed(self, failure: Failure) -> Failed:
        """Return a failure to find the response, which is none of the chain that it continues."""
        facts = replace(failure, chained=False, visible=self.stream.is_visible)
        return Failed(failure=facts, response_id=self._id, usage=self.stream.usage)
