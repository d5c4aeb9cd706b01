"""One delivery of a turn, from claim to commit.

```
claim → plan → load → begin → call → commit
                         ↑      └─ failure → classify → decide ─→ retry | give up
                         └─────────────────────── heal ←┘
```
Every arrow that writes is one transaction; none is open while the provider speaks.
"""

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never
from uuid import UUID

from psycopg import Error as PsycopgError
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from turnkeeper.states import AttemptOutcome
from turnkeeper_worker import store
from turnkeeper_worker.chain import Chained, Credential, FullReplay, Plan, plan
from turnkeeper_worker.config import ProviderConfig, RetryPolicy
from turnkeeper_worker.database import Database
from turnkeeper_worker.decide import Decision, GiveUp, Heal, Retry, decide
from turnkeeper_worker.failures import Classified, Failure, classify, describe
from turnkeeper_worker.leases import Lease, Stop
from turnkeeper_worker.live import Live
from turnkeeper_worker.outcomes import Cancelled, Completed, Dropped, GaveUp, HandedBack, Outcome, Retrying
from turnkeeper_worker.providers import (
    Answer,
    Call,
    Failed,
    Provider,
    Result,
    unknown_provider,
    unnamed_model,
)
from turnkeeper_worker.replay import readable_by, repair
from turnkeeper_worker.speaker import Speaker
from turnkeeper_worker.store import Claimed, Early, Ended, LeaseLost, NotMine
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claimed turn with its call, ready to be made."""

    turn: Claimed
    call: Call
    credential: Credential


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRunner:
    """Runs turns.  Belongs to one event loop; the turns share it and know nothing of each other."""

    worker_id: UUID
    database: Database
    live: Live
    providers: Mapping[str, Provider]
    configs: Mapping[str, ProviderConfig]
    keys: Mapping[str, str]
    """A fingerprint of each provider's API key."""
    policy_for: Callable[[ProviderConfig | None], RetryPolicy]
    broker_horizon: timedelta
    rng: random.Random

    async def run(self, lease: Lease) -> Outcome:
        """Run the turn that *lease* is for, as far as one delivery goes."""
        began = time.monotonic()
        attempt = await self._take(lease.turn_id)
        if attempt is None:
            return Dropped("not due, not first in its chat, or held by another worker")
        lease.claimed(attempt.turn.epoch)
        if attempt.turn.is_cancelled:
            lease.stop(Stop.CANCELLED)
        try:
            return await self._go(attempt, lease, began)
        except LeaseLost as lost:
            log.warning("turn.lease_lost", turn_id=str(lost.turn_id), epoch=lost.epoch)
            return Dropped("the lease was lost")

    async def _take(self, turn_id: UUID) -> Attempt | None:
        while True:
            try:
                taken = await self.database.surely(self._claim_and_begin, turn_id)
            except IntegrityError as error:
                if not _breaks(error, "ix_turns_one_runs"):
                    raise
                # Another turn of the chat was claimed in the same moment; the unique index decided.
                return None
            match taken:
                case Attempt():
                    return taken
                case NotMine():
                    return None
                case Early(wait):
                    await asyncio.sleep(wait.total_seconds())

    def _claim_and_begin(self, connection: Connection, turn_id: UUID) -> Attempt | Early | NotMine:
        match store.claim(connection, turn_id, self.worker_id):
            case Claimed() as turn:
                return self._begin(connection, turn)
            case Early() | NotMine() as not_now:
                return not_now

    def _begin(self, connection: Connection, turn: Claimed) -> Attempt:
        """Plan, load and record the attempt that the turn is at."""
        config = self.configs.get(turn.provider)
        credential = self._credential(turn, config)
        planned = self._plan(connection, turn, credential, stores=config is not None and config.keeps_responses)
        anchor = planned.anchor if isinstance(planned, Chained) else None
        said = store.load(connection, turn, after=anchor.through if anchor else 0)
        call = Call(
            request_id=f"{turn.id}/{turn.step}.{turn.attempt}",
            model=credential.model or "",
            history=repair(readable_by(said, turn.provider)),
            previous_response_id=anchor.response_id if anchor else None,
            instructions=turn.instructions,
            options=turn.options,
        )
        store.begin(connection, turn, model=credential.model, chained=call.is_chained)
        return Attempt(replace(turn, model=credential.model), call, credential)

    def _credential(self, turn: Claimed, config: ProviderConfig | None) -> Credential:
        return Credential(
            provider=turn.provider,
            base_url=config.base_url if config else "",
            key=self.keys.get(turn.provider, ""),
            model=turn.model or (config.model if config else None),
        )

    def _plan(self, connection: Connection, turn: Claimed, credential: Credential, *, stores: bool) -> Plan:
        if turn.anchor is None:
            return FullReplay("no anchor")
        past = store.survey(connection, turn, through=turn.anchor.through)
        return plan(turn.anchor, credential=credential, stores=stores, digest=past.digest, has_news=past.news > 0)

    async def _go(self, attempt: Attempt, lease: Lease, began: float) -> Outcome:
        """Call, and call again after a heal, until the delivery has its outcome."""
        while True:
            speaker = Speaker(self.live, attempt.turn)
            try:
                result = await self._call(attempt, speaker, lease)
            except asyncio.CancelledError:
                if lease.stopped is None:
                    raise
                return await self._stop(attempt, speaker, lease.stopped)
            if lease.stopped is Stop.CANCELLED and isinstance(result, Failed):
                return await self._stop(attempt, speaker, lease.stopped)
            elapsed = attempt.turn.elapsed + timedelta(seconds=time.monotonic() - began)
            try:
                concluded = await self._conclude(attempt, result, speaker, elapsed)
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001 - the edge of a turn: what cannot be stored once never can
                concluded = await self._fail(attempt, self._crashed(attempt, error), speaker, elapsed)
            if not isinstance(concluded, Attempt):
                return concluded
            attempt = concluded

    async def _call(self, attempt: Attempt, speaker: Speaker, lease: Lease) -> Result:
        speaker.say_started(attempt.call)
        lease.listen()
        try:
            # A stop that came before we listened strikes here.
            await asyncio.sleep(0)
            return await self._provider(attempt).call(attempt.call, speaker)
        except Exception as error:  # noqa: BLE001 - the edge of a turn: a fault of ours ends it, never the worker
            return self._crashed(attempt, error)
        finally:
            lease.settle()

    def _crashed(self, attempt: Attempt, error: Exception) -> Failed:
        """Turn a fault of ours into a failure: by its class and its place, for its message may quote the chat."""
        turn, facts = attempt.turn, describe(error)
        log.error(
            "turn.crashed",
            turn_id=str(turn.id),
            attempt=turn.attempt,
            error=facts[0].names[0],
            trace="".join(traceback.format_tb(error.__traceback__)),
        )
        wordless = tuple(replace(fact, text="") for fact in facts)
        return Failed(failure=Failure(provider=turn.provider, exceptions=wordless))

    def _provider(self, attempt: Attempt) -> Provider:
        name = attempt.turn.provider
        if (provider := self.providers.get(name)) is None:
            return unknown_provider(name)
        return provider if attempt.call.model else unnamed_model(name)

    async def _conclude(
        self, attempt: Attempt, result: Result, speaker: Speaker, elapsed: timedelta
    ) -> Outcome | Attempt:
        match result:
            case Answer():
                return await self._complete(attempt, result, speaker)
            case Failed():
                return await self._fail(attempt, result, speaker, elapsed)
            case other:
                assert_never(other)

    async def _complete(self, attempt: Attempt, answer: Answer, speaker: Speaker) -> Completed:
        ended = Ended(
            outcome=AttemptOutcome.COMPLETED,
            response_id=answer.response_id,
            usage=answer.usage,
            first_event_at=speaker.first_event_at,
        )
        stored_at = attempt.credential if answer.can_anchor else None
        settled = await self.database.surely(store.complete, attempt.turn, ended, answer.messages, stored_at)
        speaker.say_completed(answer, settled.position)
        return Completed(_summary(attempt, answer), settled.woken)

    async def _fail(
        self, attempt: Attempt, failed: Failed, speaker: Speaker, elapsed: timedelta
    ) -> Outcome | Attempt:
        """Classify → decide → apply."""
        classified = classify(failed.failure, now=datetime.now(UTC))
        decision = self._decide(attempt.turn, classified, elapsed)
        ended = _ended(classified, failed, speaker)
        _log_failure(attempt, classified, decision)
        match decision:
            case Retry(delay=delay):
                return await self._retry(attempt, replace(ended, delay=delay), delay, speaker)
            case Heal():
                return await self._heal(attempt, replace(ended, outcome=AttemptOutcome.HEALED), speaker)
            case GiveUp(error=error, reason=reason):
                facts = (ended.facts or {}) | {"gave_up": reason}
                final = replace(ended, outcome=AttemptOutcome.FAILED, error=error, facts=facts)
                settled = await self.database.surely(store.fail, attempt.turn, final)
                speaker.say_failed(error)
                return GaveUp(error, settled.woken)
            case other:
                assert_never(other)

    def _decide(self, turn: Claimed, classified: Classified, elapsed: timedelta) -> Decision:
        return decide(
            classified,
            spent=turn.spent + 1,
            elapsed=elapsed,
            healed=turn.healed,
            policy=self.policy_for(self.configs.get(turn.provider)),
            rng=self.rng,
            now=datetime.now(UTC),
        )

    async def _retry(self, attempt: Attempt, ended: Ended, delay: timedelta, speaker: Speaker) -> Retrying:
        is_rung = delay <= self.broker_horizon
        retrying_at = await self.database.surely(store.retry, attempt.turn, ended, is_rung=is_rung)
        speaker.say_retry("retry", error=ended.error, retrying_at=retrying_at, delay=delay)
        kind = ended.error.kind if ended.error else "failure"
        return Retrying(delay, attempt.turn.attempt, f"{kind}, next attempt in {delay.total_seconds():.1f} s")

    async def _heal(self, attempt: Attempt, ended: Ended, speaker: Speaker) -> Attempt:
        healed = await self.database.surely(self._heal_and_begin, attempt.turn, ended)
        speaker.say_retry("heal", error=ended.error)
        return healed

    def _heal_and_begin(self, connection: Connection, turn: Claimed, ended: Ended) -> Attempt:
        return self._begin(connection, store.heal(connection, turn, ended))

    async def _stop(self, attempt: Attempt, speaker: Speaker, why: Stop) -> Outcome:
        match why:
            case Stop.CANCELLED:
                return await self._cancel(attempt.turn, speaker)
            case Stop.HANDED_BACK:
                return await self._hand_back(attempt.turn, speaker)
            case Stop.LOST:
                return Dropped("the lease was lost")
            case other:
                assert_never(other)

    async def _cancel(self, turn: Claimed, speaker: Speaker) -> Cancelled:
        said = speaker.partial()
        ended = Ended(outcome=AttemptOutcome.CANCELLED, first_event_at=speaker.first_event_at)
        settled = await self.database.surely(store.cancel, turn, ended, said)
        speaker.say_cancelled(said, settled.position)
        return Cancelled(settled.woken)

    async def _hand_back(self, turn: Claimed, speaker: Speaker) -> HandedBack:
        ended = Ended(outcome=AttemptOutcome.HANDED_BACK, first_event_at=speaker.first_event_at)
        await self.database.surely(store.hand_back, turn, ended)
        speaker.say_retry("handed_back")
        return HandedBack(turn.attempt)


def _breaks(error: IntegrityError, constraint: str) -> bool:
    return isinstance(error.orig, PsycopgError) and error.orig.diag.constraint_name == constraint


def _ended(classified: Classified, failed: Failed, speaker: Speaker) -> Ended:
    facts = {
        "code": classified.code,
        "request_id": classified.request_id,
        "rule": classified.rule,
        "evidence": classified.evidence,
        "hint_ms": round(classified.hint.wait.total_seconds() * 1000) if classified.hint else None,
        "hint_source": classified.hint.source if classified.hint else None,
        "chain_broken": classified.chain_broken or None,
    }
    return Ended(
        outcome=AttemptOutcome.RETRIED,
        error=classified.error,
        facts={name: fact for name, fact in facts.items() if fact not in {None, ""}},
        response_id=failed.response_id,
        usage=failed.usage,
        first_event_at=speaker.first_event_at,
    )


def _log_failure(attempt: Attempt, classified: Classified, decision: Decision) -> None:
    log.warning(
        "attempt.failed",
        turn_id=str(attempt.turn.id),
        step=attempt.turn.step,
        attempt=attempt.turn.attempt,
        epoch=attempt.turn.epoch,
        kind=str(classified.error.kind),
        status_code=classified.error.status_code,
        rule=classified.rule,
        chain_broken=classified.chain_broken,
        decision=type(decision).__name__.lower(),
        delay_s=round(decision.delay.total_seconds(), 3) if isinstance(decision, Retry) else None,
    )


def _summary(attempt: Attempt, answer: Answer) -> str:
    """Return what Flower shows as the result: one line, no words of the chat."""
    usage = answer.usage or {}
    tokens = f"in={usage.get('input_tokens', '?')} out={usage.get('output_tokens', '?')}"
    chained = "chained" if attempt.call.is_chained else "full history"
    return f"{attempt.turn.provider} {attempt.call.model} attempt={attempt.turn.attempt} {chained} {tokens}"
