"""The cooldown: a credential and model that must rest, or be called no faster than its provider allows.

All workers share one gate per credential and model, in Redis; `cooldown.lua` is its core. A turn asks before each
call of a model, and is told to go, or when its slot comes; the slot is its own, so it comes back once. The gate is
fed by the head of every response, as soon as it is there, and by every failure that says *not now*.

A key that is well costs a look into a dictionary: what the gate allows is remembered for a second. Without Redis
each worker carries on by itself, with what it remembers.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.resources import files
from math import inf
from typing import Any, Literal, Self, TypeAlias
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from turnkeeper.errors import ErrorKind
from turnkeeper.keys import COOLDOWNS
from turnkeeper_worker.buckets import Bucket, Limits, read_limits
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.failures import Classified, Failure, Signal
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)

REDIS_TIMEOUT_SECONDS = 0.05
"""So long a call waits for Redis whose key is well; another waits in place, as it may have to anyway."""
LATE_ROUNDS = 3
"""Of the event loop, that an answer takes from the socket to whoever waits for it."""
BLIND_SECONDS = 1.0
"""How long a Redis that did not answer is left alone."""
REMEMBERED_SECONDS = 1.0
"""How long a worker believes what the gate allowed."""
IN_PLACE = timedelta(seconds=0.5)
"""A shorter wait is not worth two transactions."""
LEAD = timedelta(seconds=0.25)
"""A parked turn comes back so much before its slot, and waits for the rest in place, to the millisecond."""
LOOK_AGAIN_SECONDS = (0.05, 0.2)
"""How soon a turn asks again where nothing is known of the key yet."""
FIRST_ABSENCE, LONGEST_ABSENCE = timedelta(seconds=1), timedelta(seconds=30)
"""How long it is parked where nothing becomes known."""
LONGEST_REST = timedelta(days=1)
"""A longer rest is a mistake of the sender; and somebody may have paid meanwhile."""
MOST_KEYS = 1000
"""Models are named by producers, so there is no end to them."""
NEVER = -inf

Whose: TypeAlias = Literal["key", "model"]
"""What must rest: a credential with a model, or the model whoever calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The call must wait so long that its turn should not hold a place meanwhile."""

    wait: timedelta
    """Until the turn should be back."""
    rest: timedelta
    """How much of the wait the provider has asked for; the remainder is the queue before the slot."""
    kind: ErrorKind
    """Why: `rate_limit` or `overloaded`."""
    is_too_long: bool = False
    """The turn cannot wait for it; no slot is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a turn can wait."""

    wait: timedelta
    """In all, the queue included."""
    rest: timedelta
    """For what the provider asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says."""

    says: Literal["go", "wait", "ask again", "too far"]
    wait: timedelta
    rest: timedelta
    kind: ErrorKind
    allowance: float
    interval: timedelta


@dataclass(slots=True)
class Memory:
    """What this process remembers of one gate, and has not told it yet.  Pure: the clock is an argument."""

    keys: Sequence[str] = ()
    """What the gate is made of, in Redis."""
    labels: Sequence[str] = ()
    """What people call the gate, and the model's."""
    believes_until: float = NEVER
    allowance: float = 0
    """How many calls may be made without asking."""
    calls: int = 0
    """How many were made so."""
    answers: int = 0
    """How many of them were answered."""
    rests_until: float = NEVER
    interval: float = 0
    next_at: float = NEVER
    kind: ErrorKind = ErrorKind.RATE_LIMIT

    @classmethod
    def of(cls, credential: Credential) -> Self:
        """Begin to remember the gate of a credential."""
        label = {"provider": credential.provider, "model": credential.model}
        return cls(keys=gate_keys(credential), labels=(json.dumps(label), json.dumps(label | {"every_key": True})))

    def may_go(self, now: float) -> bool:
        """Let a call go without asking, if the gate allowed it a moment ago; count it."""
        if now >= self.believes_until or self.calls >= self.allowance:
            return False
        self.calls += 1
        return True

    def doubt(self) -> None:
        """Believe nothing any more."""
        self.believes_until = NEVER

    def take_unsaid(self) -> tuple[int, int]:
        """Return the calls and answers that the gate does not know of, which is about to be told."""
        unsaid = self.calls, self.answers
        self.calls = self.answers = 0
        return unsaid

    def learn(self, verdict: Verdict, now: float) -> None:
        """Remember what the gate said."""
        self.allowance = verdict.allowance
        self.believes_until = now + REMEMBERED_SECONDS if verdict.allowance else NEVER
        self.rests_until = now + verdict.rest.total_seconds()
        self.interval = verdict.interval.total_seconds()
        self.kind = verdict.kind

    def rest(self, until: float, kind: ErrorKind) -> None:
        """Remember a rest that only this process knows of yet."""
        self.doubt()
        if until > self.rests_until:
            self.rests_until, self.kind = until, kind

    def wait_alone(self, now: float) -> float:
        """Return how long a call waits where there is no gate to ask: no two of ours are closer than the pace."""
        at = max(now, self.rests_until, self.next_at)
        self.next_at = at + self.interval
        return at - now


@dataclass(slots=True, kw_only=True)
class Permit:
    """One call that may be made; hears what comes of it."""

    cooldowns: "Cooldowns | None" = None
    """None: nobody keeps count."""
    credential: Credential | None = None
    sent_at: float = 0
    is_answered: bool = False
    bucket: Bucket | None = None
    """What the head of the response told."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Hear that the head of the response has come."""
        if self.cooldowns is not None:
            self.cooldowns.hear_head(self, status, headers)

    def failed(self, classified: Classified) -> None:
        """Hear what the call failed of."""
        if self.cooldowns is not None:
            self.cooldowns.hear_failure(self, classified)


@dataclass(slots=True, kw_only=True)
class Cooldowns:
    """The gates of all credentials and models, as one process sees them.  Belongs to one event loop."""

    redis: Redis
    """A client whose timeouts are short."""
    off: Collection[str] = ()
    """The providers whose calls are not counted."""
    rng: random.Random = field(default_factory=random.Random)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _memories: dict[Credential, Memory] = field(default_factory=dict)
    _script: Any = None
    _blind_until: float = NEVER
    _telling: "set[asyncio.Task[Verdict | None]]" = field(default_factory=set)

    async def ask(self, credential: Credential, turn_id: UUID, patience: Patience) -> Permit | Rest:
        """Ask whether a call may be made; return when it may, unless that is too far ahead.

        Args:
            credential: Whose call, and of which model.
            turn_id: Whose slot it is to be.
            patience: How long the turn can wait; no slot is kept for one that cannot.
        """
        if credential.provider in self.off:
            return Permit()
        memory = self._memory(credential)
        if not memory.may_go(self.clock()):
            rest = await self._wait(memory, turn_id, patience)
            if rest is not None:
                return rest
        return Permit(cooldowns=self, credential=credential, sent_at=self.clock())

    async def _wait(self, memory: Memory, turn_id: UUID, patience: Patience) -> Rest | None:
        """Wait in place where that is short; return None when the call may be made."""
        began = self.clock()
        while True:
            waits = map(_milliseconds, (IN_PLACE, patience.wait, patience.rest))
            match await self._exchange(memory, "ask", turn_id.hex, *waits):
                case None:
                    return await self._wait_alone(memory, patience)
                case Verdict(says="go", wait=wait):
                    await self._pause(wait)
                    return None
                case Verdict(says="ask again") as verdict:
                    if self.clock() - began >= IN_PLACE.total_seconds():
                        return self._absence(verdict)
                    await self.sleep(self.rng.uniform(*LOOK_AGAIN_SECONDS))
                case Verdict(says="wait", wait=wait, rest=rest, kind=kind):
                    return Rest(wait=max(wait - LEAD, LEAD), rest=rest, kind=kind)
                case Verdict(wait=wait, rest=rest, kind=kind):
                    return Rest(wait=wait, rest=rest, kind=kind, is_too_long=True)

    async def _wait_alone(self, memory: Memory, patience: Patience) -> Rest | None:
        now = self.clock()
        wait = timedelta(seconds=memory.wait_alone(now))
        if wait <= IN_PLACE:
            await self._pause(wait)
            return None
        rest = timedelta(seconds=max(0.0, memory.rests_until - now))
        is_too_long = wait > patience.wait or rest > patience.rest
        spread = wait if is_too_long else wait * self.rng.uniform(1, 1.2)
        return Rest(wait=spread, rest=rest, kind=memory.kind, is_too_long=is_too_long)

    async def _pause(self, wait: timedelta) -> None:
        if wait > timedelta(0):
            await self.sleep(wait.total_seconds())

    def _absence(self, verdict: Verdict) -> Rest:
        """Stay away for as long again as nothing was heard of an unknown key; spread, for there is no slot."""
        silence = min(max(verdict.wait, FIRST_ABSENCE), LONGEST_ABSENCE)
        return Rest(wait=silence * self.rng.uniform(1, 1.5), rest=timedelta(0), kind=verdict.kind)

    def hear_head(self, permit: Permit, status: int, headers: Mapping[str, str]) -> None:
        """Hear the head of a response; returns at once."""
        credential = permit.credential
        assert credential is not None  # noqa: S101 - for the type checker; who counts knows the credential
        memory = self._memory(credential)
        limits = read_limits(headers, now=datetime.now(UTC))
        permit.bucket, permit.is_answered = limits.bucket, True
        is_throttled = status in _THROTTLED
        memory.answers += not is_throttled
        if limits.empty_for is not None:
            self._rest(permit, "key", limits.empty_for, ErrorKind.RATE_LIMIT)
        if is_throttled or _is_news(memory, limits, self.clock()):
            memory.doubt()
            self._tell(memory, "heard", self._age(permit), int(is_throttled), *_as_words(limits.bucket))

    def hear_failure(self, permit: Permit, classified: Classified) -> None:
        """Hear what a call failed of; returns at once."""
        if (whose := _what_rests(classified)) is None:
            if not permit.is_answered:
                # A provider that cannot be reached is no reason to wait for its answer; retries have their own.
                self.hear_head(permit, 0, {})
            return
        hint = classified.hint
        wait = hint.wait if hint is not None else timedelta(0)
        if hint is not None and permit.bucket is not None and hint.source in _REQUEST_RESETS:
            # When the whole bucket has filled; the gate knows when the next call comes in.
            wait = timedelta(0)
        self._rest(permit, whose, min(wait, LONGEST_REST), classified.error.kind)

    def _rest(self, permit: Permit, whose: Whose, wait: timedelta, kind: ErrorKind) -> None:
        credential = permit.credential
        assert credential is not None  # noqa: S101 - as above
        said = ErrorKind.RATE_LIMIT if kind is ErrorKind.RATE_LIMIT else ErrorKind.OVERLOADED
        memory = self._memory(credential)
        memory.rest(self.clock() + wait.total_seconds(), said)
        self._tell(memory, "throttled", self._age(permit), whose, _milliseconds(wait), str(said))

    def _memory(self, credential: Credential) -> Memory:
        memory = self._memories.get(credential)
        if memory is None:
            if len(self._memories) >= MOST_KEYS:
                self._memories.clear()
            memory = self._memories[credential] = Memory.of(credential)
        return memory

    def _age(self, permit: Permit) -> int:
        return round((self.clock() - permit.sent_at) * 1000)

    def _tell(self, memory: Memory, *said: object) -> None:
        """Tell the gate, without waiting for it."""
        task = asyncio.create_task(self._exchange(memory, *said))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Wait until everything is told."""
        await asyncio.gather(*self._telling, return_exceptions=True)

    async def _exchange(self, memory: Memory, *said: object) -> Verdict | None:
        """Tell the gate what it does not know and hear what it says; None where Redis is away."""
        if self.clock() < self._blind_until:
            return None
        task = asyncio.create_task(self._run_script(memory, *said))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        is_well = memory.allowance > 0
        await asyncio.wait({task}, timeout=REDIS_TIMEOUT_SECONDS if is_well else IN_PLACE.total_seconds())
        for _ in range(LATE_ROUNDS):
            # On an event loop that is late the time is up before an answer is read that has long come.
            if not task.done():
                await asyncio.sleep(0)
        return task.result() if task.done() else _NO_ANSWER[is_well]

    async def _run_script(self, memory: Memory, *said: object) -> Verdict | None:
        calls, answers = memory.take_unsaid()
        if self._script is None:
            self._script = self.redis.register_script(script())
        try:
            answer = await self._script(
                keys=memory.keys, args=[said[0], "", *memory.labels, calls, answers, *said[1:]]
            )
        except (RedisError, OSError, RuntimeError) as error:
            self._blind_until = self.clock() + BLIND_SECONDS
            log.warning("cooldown.blind", error=str(error) or type(error).__name__)
            return None
        self._blind_until = NEVER
        verdict = _read(answer)
        memory.learn(verdict, self.clock())
        return verdict


def as_failure(rest: Rest, provider: str) -> Failure:
    """State a rest that a turn cannot wait for as the failure that a call would have met."""
    is_key = rest.kind is ErrorKind.RATE_LIMIT
    return Failure(
        provider=provider,
        signal=Signal.KEY_RESTS if is_key else Signal.MODEL_RESTS,
        headers={"retry-after": f"{rest.wait.total_seconds():.3f}"},
    )


def script() -> str:
    """Return the gate's core."""
    return files(__package__ or "turnkeeper_worker").joinpath("cooldown.lua").read_text(encoding="utf-8")


def gate_keys(credential: Credential) -> list[str]:
    """Name what the gate of a credential's model is made of, in Redis."""
    model = _digest(credential.base_url, credential.model)
    key = _digest(credential.seal, credential.base_url, credential.model)
    return [f"{COOLDOWNS}:key:{key}", f"{COOLDOWNS}:model:{model}", f"{COOLDOWNS}:slots:{key}", COOLDOWNS]


def _digest(*parts: object) -> str:
    return sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


_NO_ANSWER = {
    is_well: Verdict(
        says="go" if is_well else "ask again",
        wait=timedelta(0),
        rest=timedelta(0),
        kind=ErrorKind.RATE_LIMIT,
        allowance=0,
        interval=timedelta(0),
    )
    for is_well in (True, False)
}
"""What is done when an answer comes late, or never."""
_THROTTLED = frozenset({429, 503, 529})
"""Statuses of a head that says *not now*."""
_REQUEST_RESETS = frozenset({"x-ratelimit-reset-requests", "anthropic-ratelimit-requests-reset"})


def _what_rests(classified: Classified) -> Whose | None:
    """Tell what must rest after a failure: capacity is lacking for every key, a rate is exceeded by one."""
    if not classified.error.retryable or classified.chain_broken:
        return None
    if classified.error.kind is ErrorKind.RATE_LIMIT:
        return "key"
    is_hinted = classified.hint is not None and classified.error.status_code is not None
    return "model" if classified.error.kind is ErrorKind.OVERLOADED or is_hinted else None


def _is_news(memory: Memory, limits: Limits, now: float) -> bool:
    """Whether the gate should hear of a response at once; of a key that is well it hears every second."""
    is_well = now < memory.believes_until
    return not is_well or (limits.bucket is not None and not limits.bucket.is_ample)


def _as_words(bucket: Bucket | None) -> Sequence[object]:
    if bucket is None:
        return ("", "", "", "")
    return bucket.limit, bucket.remaining, _milliseconds(bucket.reset), _milliseconds(bucket.error)


def _milliseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


def _read(answer: Sequence[Any]) -> Verdict:
    says, wait, rest, why, allowance, interval = answer
    return Verdict(
        says=says.decode(),
        wait=timedelta(microseconds=wait),
        rest=timedelta(microseconds=rest),
        kind=ErrorKind(why.decode()),
        allowance=inf if allowance < 0 else allowance,
        interval=timedelta(microseconds=interval),
    )
