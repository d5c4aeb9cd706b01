"""The producers' side: enqueue turns, edit them, follow them, cancel them, read them.

`Turnkeeper` and `AsyncTurnkeeper` are the same, the second with `await`. Both run the same functions of
`turnkeeper.turns` inside a transaction and tell the rest of the world afterwards.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast
from uuid import UUID

import redis
import redis.asyncio
from celery import Celery
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from turnkeeper import limits, switches, turns, views
from turnkeeper.database import explaining_database_errors
from turnkeeper.doorbell import producer_app, ring
from turnkeeper.erasing import Erased, erase_chat
from turnkeeper.events import Event, TurnCancelled, unvoided
from turnkeeper.exceptions import BrokerUnavailable, DatabaseUnavailable, InvalidRequest
from turnkeeper.follow import BLOCK_MS, EVENTS_TTL_SECONDS, FIELD, Entry, Follower, end_of, stored_events
from turnkeeper.keys import CANCEL_CHANNEL, events_key
from turnkeeper.limits import Limit, Usage
from turnkeeper.requests import TurnRequest
from turnkeeper.settings import Connections
from turnkeeper.states import UsagePeriod
from turnkeeper.switches import Disabled
from turnkeeper.tracing import enqueue_span
from turnkeeper.turns import Cancelled, Enqueued
from turnkeeper.views import TurnView

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

REDIS_TIMEOUT_SECONDS = 5
"""Longer than a follower's blocking read, shorter than a person's patience."""


class _Keeper:
    """What both clients share: where things are, and what a request is."""

    def __init__(
        self,
        *,
        database_url: str | None = None,
        redis_url: str | None = None,
        broker_url: str | None = None,
        queue: str | None = None,
        default_provider: str | None = None,
    ) -> None:
        self.settings = Connections.load(
            database_url=database_url,
            redis_url=redis_url,
            broker_url=broker_url,
            queue=queue,
            default_provider=default_provider,
        )

    @cached_property
    def _celery(self) -> Celery:
        return producer_app(self.settings.broker, self.settings.queue)

    def _request(self, chat: UUID | str | None, text: str | None, options: dict[str, Any]) -> TurnRequest:
        given = {name: value for name, value in options.items() if value is not None}
        request = TurnRequest.parse({"chat_id": chat, "text": text, **given})
        return request.or_default_provider(self.settings.default_provider)

    def _explaining(self) -> Any:
        return explaining_database_errors(self.settings.database)


class Turnkeeper(_Keeper):
    """The blocking client.  Safe to share between threads; close it, or use it as a context manager."""

    @cached_property
    def _engine(self) -> Engine:
        return create_engine(self.settings.database, pool_pre_ping=True, hide_parameters=True)

    @cached_property
    def _redis(self) -> "redis.Redis":
        url = self.settings.redis_url.get_secret_value()
        return redis.Redis.from_url(
            url, socket_timeout=REDIS_TIMEOUT_SECONDS, socket_connect_timeout=REDIS_TIMEOUT_SECONDS
        )

    def enqueue(
        self,
        chat: UUID | str | None,
        text: str | None = None,
        *,
        connection: Connection | None = None,
        **options: Any,
    ) -> Enqueued:
        """Store a turn and tell the workers.

        Args:
            chat: The chat to continue; None starts a new one.
            text: What the user says.
            connection: Makes the turn part of the caller's own transaction. The workers find it within
                seconds of the commit; `ring(turn.id)` after the commit saves these seconds.
            options: The other fields of `TurnRequest`: parts, provider, model, instructions, options, tools,
                fallbacks, background, owner, priority, idempotency_key, on_busy.

        Raises:
            InvalidRequest, UnknownChat, ChatBusy, IdempotencyConflict: Nothing was stored.
            UsageLimitExceeded: Nothing was stored; it says when the next period begins.
            DatabaseUnavailable: Nothing was stored.
        """
        request = self._request(chat, text, options)
        with enqueue_span() as span:
            enqueued = self._enqueue(request, connection, span.traceparent)
            span.stored(enqueued.id, enqueued.chat_id)
            return enqueued

    def _enqueue(self, request: TurnRequest, connection: Connection | None, trace_context: str | None) -> Enqueued:
        if connection is not None:
            return turns.enqueue(connection, request, is_rung=False, trace_context=trace_context)
        enqueued = self._transact(turns.enqueue, request, trace_context=trace_context)
        self._announce_stops(enqueued)
        if not enqueued.is_rung or self._ring(enqueued.id, trace_context):
            return enqueued
        return replace(enqueued, is_rung=False)

    def edit(
        self,
        turn_id: UUID | str,
        text: str | None = None,
        *,
        connection: Connection | None = None,
        **options: Any,
    ) -> Enqueued:
        """Say something else instead of a turn's message, and take back whatever came after it.

        The turn and all later ones of its chat are history no more: those that wait are cancelled, one that runs
        is asked to stop, and a new turn answers the new message. Where nothing else is asked for, it has the
        provider, model, options and tools of the turn that it replaces.

        Args:
            turn_id: The turn whose message is replaced.
            text: What the user says instead.
            connection: See `enqueue`; a running turn is then stopped with its worker's next beat.
            options: As for `enqueue`, but on_busy.

        Raises:
            InvalidRequest, UnknownTurn, TurnRejected, NotEditable, IdempotencyConflict: Nothing was changed.
            UsageLimitExceeded: Nothing was changed.
            DatabaseUnavailable: Nothing was changed.
        """
        return self.enqueue(None, text, connection=connection, edits=_uuid(turn_id), **options)

    def ring(self, turn_id: UUID) -> bool:
        """Tell the workers that a turn is due; False where the broker is away and the rescue will do it."""
        return self._ring(turn_id)

    def _ring(self, turn_id: UUID, trace_context: str | None = None) -> bool:
        try:
            ring(self._celery, turn_id, trace_context=trace_context)
        except BrokerUnavailable as error:
            log.warning("turn %s is stored and waits: %s", turn_id, error)
            self._transact(turns.forget_ring, turn_id)
            return False
        return True

    def cancel(self, turn_id: UUID | str) -> Cancelled:
        """End a waiting turn, or ask the worker of a running one to stop.  Raises UnknownTurn."""
        cancelled = self._transact(turns.cancel, _uuid(turn_id))
        if cancelled.changed:
            self._say(_cancelled_event(cancelled.id, cancelled.epoch))
        else:
            self._stop([cancelled.id])
        if cancelled.woken:
            self.ring(cancelled.woken)
        return cancelled

    def retry(self, turn_id: UUID | str) -> Enqueued:
        """Skip a turn's wait for a retry or a cooldown, or answer a failed turn anew.

        Raises UnknownTurn, NotRetryable or UsageLimitExceeded.
        """
        enqueued = self._transact(turns.retry, _uuid(turn_id))
        return enqueued if self.ring(enqueued.id) else replace(enqueued, is_rung=False)

    def show(self, turn_id: UUID | str) -> TurnView:
        """Read everything stored about a turn.  Raises UnknownTurn or TurnRejected."""
        return self._transact(views.show, _uuid(turn_id))

    def erase(self, chat_id: UUID | str) -> Erased:
        """Delete a chat with its turns, messages and live events; what runs is stopped.  Raises UnknownChat.

        What its workers still say in this moment, and a background response, are gone within a minute.
        """
        erased = self._transact(erase_chat, _uuid(chat_id))
        self._stop(erased.running)
        with _best_effort("erase the live events"):
            if erased.turns:
                self._redis.delete(*map(events_key, erased.turns))
        return erased

    def disable_provider(self, name: str, reason: str = "", *, known: Iterable[str] = ()) -> Disabled:
        """Switch a provider off for all workers, within seconds.  What they call already goes on.

        Args:
            name: The name by which workers are configured for it.
            reason: For operators; followers of a turn are not told.
            known: Names that exist besides those that workers have announced.

        Raises:
            UnknownProvider: With the names that exist.
            DatabaseUnavailable: Nothing was changed.
        """
        return self._transact(switches.disable, name, reason, known=known)

    def enable_provider(self, name: str, *, known: Iterable[str] = ()) -> bool:
        """Switch a provider on again; return whether it was off.  Raises UnknownProvider."""
        return self._transact(switches.enable, name, known=known)

    def disabled_providers(self) -> dict[str, Disabled]:
        """Return the providers that are switched off, by name."""
        return self._transact(switches.disabled)

    def usage(self, owner: str) -> tuple[Usage, ...]:
        """Return what an owner has used of each limit that holds, the shortest period first."""
        return self._transact(limits.usage_of, owner)

    def limits(self) -> tuple[Limit, ...]:
        """Return all limits of usage, by owner."""
        return self._transact(limits.list_limits)

    def set_limit(
        self,
        owner: str,
        period: UsagePeriod | str,
        *,
        max_turns: int | None = None,
        max_tokens: int | None = None,
    ) -> Limit:
        """Set what an owner may use in a period; see `turnkeeper.limits.set_limit`.  Raises InvalidRequest."""
        return self._transact(limits.set_limit, owner, period, max_turns=max_turns, max_tokens=max_tokens)

    def remove_limit(self, owner: str, period: UsagePeriod | str) -> bool:
        """Remove a limit; return whether there was one.  Raises InvalidRequest."""
        return self._transact(limits.remove_limit, owner, period)

    def follow(self, turn_id: UUID | str, *, after: str = "") -> Iterator[Event]:
        """Yield the events of a turn as they happen, until it ends.

        Args:
            turn_id: The turn.
            after: The `id` of the last event that was seen, to resume exactly behind it.

        Raises:
            UnknownTurn, TurnRejected, DatabaseUnavailable
        """
        turn = _uuid(turn_id)
        follower = Follower(cursor=after)
        ending = self._transact(stored_events, turn)
        yield from unvoided(self._catch_up(turn, follower))
        while not follower.is_over and not ending:
            if entries := self._read(turn, follower.cursor, block_ms=BLOCK_MS):
                yield from self._admit(follower, entries)
                continue
            ending = self._transact(stored_events, turn)
        if not follower.is_over:
            # It ended while we looked: what the stream still holds goes first.
            yield from self._catch_up(turn, follower)
        if not follower.is_over:
            yield from ending

    def close(self) -> None:
        """Give the connections back."""
        if "_engine" in self.__dict__:
            self._engine.dispose()
        if "_redis" in self.__dict__:
            self._redis.close()
        if "_celery" in self.__dict__:
            self._celery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transact(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._explaining(), self._engine.begin() as connection:
            return work(connection, *args, **kwargs)

    def _catch_up(self, turn_id: UUID, follower: Follower) -> list[Event]:
        """Take what the stream holds by now."""
        said: list[Event] = []
        while not follower.is_over and (entries := self._read(turn_id, follower.cursor, block_ms=0)):
            said += self._admit(follower, entries)
        return said

    def _admit(self, follower: Follower, entries: list[Entry]) -> list[Event]:
        """Take *entries*, up to a final event where the database knows of that end."""
        events = follower.admit(entries)
        if not follower.is_over:
            return events
        try:
            stored = self._transact(end_of, events[-1])
        except DatabaseUnavailable as error:
            log.debug("the final event is believed unseen: %s", error)
            return events
        if follower.resumed_behind and follower.misses(stored):
            with suppress(RedisError, OSError):
                key = events_key(events[-1].turn_id)
                follower.recall(cast("list[Entry]", self._redis.xrange(key, max=follower.resumed_behind)))
        return follower.confirm(events, stored)

    def _read(self, turn_id: UUID, cursor: str, *, block_ms: int) -> list[Entry]:
        """Read what the stream holds behind *cursor*; nothing where Redis is away."""
        try:
            found = self._redis.xread({events_key(turn_id): cursor or "0"}, block=block_ms or None)
        except RedisError as error:
            log.debug("the live events cannot be read: %s", error)
            time.sleep(block_ms / 1000)
            return []
        return _entries(found)

    def _announce_stops(self, enqueued: Enqueued) -> None:
        for turn_id, epoch in enqueued.cancelled:
            self._say(_cancelled_event(turn_id, epoch))
        self._stop(enqueued.interrupted)

    def _say(self, event: Event) -> None:
        with _best_effort("publish an event"), self._redis.pipeline() as pipeline:
            pipeline.xadd(events_key(event.turn_id), {FIELD: event.model_dump_json(exclude={"id"})})
            pipeline.expire(events_key(event.turn_id), EVENTS_TTL_SECONDS)
            pipeline.execute()

    def _stop(self, running: Iterable[UUID]) -> None:
        with _best_effort("tell the worker to stop"):
            for turn_id in running:
                self._redis.publish(CANCEL_CHANNEL, str(turn_id))


class AsyncTurnkeeper(_Keeper):
    """The client for an event loop.  Use it from one loop; close it, or use it as a context manager."""

    @cached_property
    def _engine(self) -> AsyncEngine:
        return create_async_engine(self.settings.database, pool_pre_ping=True, hide_parameters=True)

    @cached_property
    def _redis(self) -> "redis.asyncio.Redis":
        url = self.settings.redis_url.get_secret_value()
        return redis.asyncio.Redis.from_url(
            url, socket_timeout=REDIS_TIMEOUT_SECONDS, socket_connect_timeout=REDIS_TIMEOUT_SECONDS
        )

    async def enqueue(
        self,
        chat: UUID | str | None,
        text: str | None = None,
        *,
        connection: AsyncConnection | None = None,
        **options: Any,
    ) -> Enqueued:
        """Store a turn and tell the workers; see `Turnkeeper.enqueue`."""
        request = self._request(chat, text, options)
        with enqueue_span() as span:
            enqueued = await self._enqueue(request, connection, span.traceparent)
            span.stored(enqueued.id, enqueued.chat_id)
            return enqueued

    async def _enqueue(
        self, request: TurnRequest, connection: AsyncConnection | None, trace_context: str | None
    ) -> Enqueued:
        if connection is not None:
            return await connection.run_sync(turns.enqueue, request, is_rung=False, trace_context=trace_context)
        enqueued = await self._transact(turns.enqueue, request, trace_context=trace_context)
        await self._announce_stops(enqueued)
        if not enqueued.is_rung or await self._ring(enqueued.id, trace_context):
            return enqueued
        return replace(enqueued, is_rung=False)

    async def edit(
        self,
        turn_id: UUID | str,
        text: str | None = None,
        *,
        connection: AsyncConnection | None = None,
        **options: Any,
    ) -> Enqueued:
        """Say something else instead of a turn's message; see `Turnkeeper.edit`."""
        return await self.enqueue(None, text, connection=connection, edits=_uuid(turn_id), **options)

    async def ring(self, turn_id: UUID) -> bool:
        """Tell the workers that a turn is due; False where the broker is away and the rescue will do it."""
        return await self._ring(turn_id)

    async def _ring(self, turn_id: UUID, trace_context: str | None = None) -> bool:
        try:
            await asyncio.to_thread(ring, self._celery, turn_id, trace_context=trace_context)
        except BrokerUnavailable as error:
            log.warning("turn %s is stored and waits: %s", turn_id, error)
            await self._transact(turns.forget_ring, turn_id)
            return False
        return True

    async def cancel(self, turn_id: UUID | str) -> Cancelled:
        """End a waiting turn, or ask the worker of a running one to stop.  Raises UnknownTurn."""
        cancelled = await self._transact(turns.cancel, _uuid(turn_id))
        if cancelled.changed:
            await self._say(_cancelled_event(cancelled.id, cancelled.epoch))
        else:
            await self._stop([cancelled.id])
        if cancelled.woken:
            await self.ring(cancelled.woken)
        return cancelled

    async def retry(self, turn_id: UUID | str) -> Enqueued:
        """Skip a turn's wait for a retry or a cooldown, or answer a failed turn anew.

        Raises UnknownTurn, NotRetryable or UsageLimitExceeded.
        """
        enqueued = await self._transact(turns.retry, _uuid(turn_id))
        return enqueued if await self.ring(enqueued.id) else replace(enqueued, is_rung=False)

    async def show(self, turn_id: UUID | str) -> TurnView:
        """Read everything stored about a turn.  Raises UnknownTurn or TurnRejected."""
        return await self._transact(views.show, _uuid(turn_id))

    async def erase(self, chat_id: UUID | str) -> Erased:
        """Delete a chat with its turns, messages and live events; see `Turnkeeper.erase`."""
        erased = await self._transact(erase_chat, _uuid(chat_id))
        await self._stop(erased.running)
        with _best_effort("erase the live events"):
            if erased.turns:
                await self._redis.delete(*map(events_key, erased.turns))
        return erased

    async def disable_provider(self, name: str, reason: str = "", *, known: Iterable[str] = ()) -> Disabled:
        """Switch a provider off for all workers; see `Turnkeeper.disable_provider`."""
        return await self._transact(switches.disable, name, reason, known=known)

    async def enable_provider(self, name: str, *, known: Iterable[str] = ()) -> bool:
        """Switch a provider on again; return whether it was off.  Raises UnknownProvider."""
        return await self._transact(switches.enable, name, known=known)

    async def disabled_providers(self) -> dict[str, Disabled]:
        """Return the providers that are switched off, by name."""
        return await self._transact(switches.disabled)

    async def usage(self, owner: str) -> tuple[Usage, ...]:
        """Return what an owner has used of each limit that holds, the shortest period first."""
        return await self._transact(limits.usage_of, owner)

    async def limits(self) -> tuple[Limit, ...]:
        """Return all limits of usage, by owner."""
        return await self._transact(limits.list_limits)

    async def set_limit(
        self,
        owner: str,
        period: UsagePeriod | str,
        *,
        max_turns: int | None = None,
        max_tokens: int | None = None,
    ) -> Limit:
        """Set what an owner may use in a period; see `turnkeeper.limits.set_limit`.  Raises InvalidRequest."""
        return await self._transact(limits.set_limit, owner, period, max_turns=max_turns, max_tokens=max_tokens)

    async def remove_limit(self, owner: str, period: UsagePeriod | str) -> bool:
        """Remove a limit; return whether there was one.  Raises InvalidRequest."""
        return await self._transact(limits.remove_limit, owner, period)

    async def follow(self, turn_id: UUID | str, *, after: str = "") -> AsyncIterator[Event]:
        """Yield the events of a turn as they happen, until it ends; see `Turnkeeper.follow`."""
        turn = _uuid(turn_id)
        follower = Follower(cursor=after)
        ending = await self._transact(stored_events, turn)
        for event in unvoided(await self._catch_up(turn, follower)):
            yield event
        while not follower.is_over and not ending:
            if entries := await self._read(turn, follower.cursor, block_ms=BLOCK_MS):
                for event in await self._admit(follower, entries):
                    yield event
                continue
            ending = await self._transact(stored_events, turn)
        if not follower.is_over:
            # It ended while we looked: what the stream still holds goes first.
            for event in await self._catch_up(turn, follower):
                yield event
        if not follower.is_over:
            for event in ending:
                yield event

    async def close(self) -> None:
        """Give the connections back."""
        if "_engine" in self.__dict__:
            await self._engine.dispose()
        if "_redis" in self.__dict__:
            await self._redis.aclose()
        if "_celery" in self.__dict__:
            self._celery.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _transact(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._explaining():
            async with self._engine.begin() as connection:
                return await connection.run_sync(work, *args, **kwargs)

    async def _catch_up(self, turn_id: UUID, follower: Follower) -> list[Event]:
        said: list[Event] = []
        while not follower.is_over and (entries := await self._read(turn_id, follower.cursor, block_ms=0)):
            said += await self._admit(follower, entries)
        return said

    async def _admit(self, follower: Follower, entries: list[Entry]) -> list[Event]:
        events = follower.admit(entries)
        if not follower.is_over:
            return events
        try:
            stored = await self._transact(end_of, events[-1])
        except DatabaseUnavailable as error:
            log.debug("the final event is believed unseen: %s", error)
            return events
        if follower.resumed_behind and follower.misses(stored):
            with suppress(RedisError, OSError):
                key = events_key(events[-1].turn_id)
                earlier = await self._redis.xrange(key, max=follower.resumed_behind)
                follower.recall(cast("list[Entry]", earlier))
        return follower.confirm(events, stored)

    async def _read(self, turn_id: UUID, cursor: str, *, block_ms: int) -> list[Entry]:
        try:
            found = await self._redis.xread({events_key(turn_id): cursor or "0"}, block=block_ms or None)
        except RedisError as error:
            log.debug("the live events cannot be read: %s", error)
            await asyncio.sleep(block_ms / 1000)
            return []
        return _entries(found)

    async def _announce_stops(self, enqueued: Enqueued) -> None:
        for turn_id, epoch in enqueued.cancelled:
            await self._say(_cancelled_event(turn_id, epoch))
        await self._stop(enqueued.interrupted)

    async def _say(self, event: Event) -> None:
        with _best_effort("publish an event"):
            async with self._redis.pipeline() as pipeline:
                pipeline.xadd(events_key(event.turn_id), {FIELD: event.model_dump_json(exclude={"id"})})
                pipeline.expire(events_key(event.turn_id), EVENTS_TTL_SECONDS)
                await pipeline.execute()

    async def _stop(self, running: Iterable[UUID]) -> None:
        with _best_effort("tell the worker to stop"):
            for turn_id in running:
                await self._redis.publish(CANCEL_CHANNEL, str(turn_id))


def _uuid(turn_id: UUID | str) -> UUID:
    try:
        return turn_id if isinstance(turn_id, UUID) else UUID(turn_id)
    except ValueError:
        raise InvalidRequest(f"{turn_id!r} is no id; `enqueue` prints the id to use") from None


def _entries(found: Any) -> list[Entry]:
    """Take the entries of the one stream that was read, in the form of either Redis protocol."""
    if isinstance(found, dict):
        return [entry for pages in found.values() for page in pages for entry in page]
    return [entry for _, entries in found or () for entry in entries]


def _cancelled_event(turn_id: UUID, epoch: int) -> TurnCancelled:
    return TurnCancelled(turn_id=turn_id, epoch=epoch)


@contextmanager
def _best_effort(what: str) -> Iterator[None]:
    """Let a failure of Redis pass: PostgreSQL holds the truth, and Redis only makes it known sooner."""
    try:
        yield
    except RedisError as error:
        log.warning("could not %s: %s", what, error)
