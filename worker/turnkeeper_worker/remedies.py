"""What was decided about a failed attempt, carried out: classify → decide → retry, heal, fall back or give up."""

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from turnkeeper.states import AttemptOutcome
from turnkeeper_worker import chain_health, store
from turnkeeper_worker.config import ProviderConfig, RetryPolicy
from turnkeeper_worker.database import Database
from turnkeeper_worker.decide import Decision, FallBack, GiveUp, Heal, Retry, decide
from turnkeeper_worker.failures import Classified, Failure, classify, describe
from turnkeeper_worker.live import Live
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.outcomes import GaveUp, Outcome, Retrying
from turnkeeper_worker.planner import Attempt, Planner
from turnkeeper_worker.providers import Failed
from turnkeeper_worker.speaker import Speaker
from turnkeeper_worker.store import Choice, Claimed, Ended
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """Takes a turn on from a failure."""

    database: Database
    live: Live
    planner: Planner
    policy_for: Callable[[ProviderConfig | None], RetryPolicy]
    broker_horizon: timedelta
    rng: random.Random
    observer: Observer

    async def apply(
        self,
        turn: Claimed,
        failed: Failed,
        elapsed: timedelta,
        speaker: Speaker | None = None,
        attempt: Attempt | None = None,
    ) -> Outcome | Attempt:
        """Carry out what follows the failure.  Raises LeaseLost.

        Args:
            turn: The turn under our lease.
            failed: What its attempt, or the storing of its answer, failed of.
            elapsed: The time since the turn first ran.
            speaker: Spoke for the attempt; None where there was none.
            attempt: What was tried, where it was the model.
        """
        speaker = speaker or Speaker(self.live, turn)
        classified = classify(failed.failure, now=datetime.now(UTC))
        speaker.permit.failed(classified)
        decision = self._decide(turn, classified, elapsed)
        ended = _ended(classified, failed, speaker, attempt)
        _log_failure(turn, classified, decision)
        done = await self._carry_out(decision, turn, ended, speaker, failed, attempt)
        self.observer.failed(turn, classified, decision, failed, speaker.watch)
        return done

    async def _carry_out(
        self,
        decision: Decision,
        turn: Claimed,
        ended: Ended,
        speaker: Speaker,
        failed: Failed,
        attempt: Attempt | None,
    ) -> Outcome | Attempt:
        match decision:
            case Retry(delay=delay):
                return await self._retry(turn, replace(ended, delay=delay), delay, speaker, failed, attempt)
            case Heal():
                return await self._heal(turn, replace(ended, outcome=AttemptOutcome.HEALED), speaker, attempt)
            case FallBack(to=to, reason=reason):
                facts = (ended.facts or {}) | {"fell_back": reason}
                left = replace(ended, outcome=AttemptOutcome.FELL_BACK, facts=facts)
                return await self._fall_back(turn, left, self.planner.choice(turn, to), speaker, failed)
            case GiveUp(error=error, reason=reason):
                facts = (ended.facts or {}) | {"gave_up": reason}
                final = replace(ended, outcome=AttemptOutcome.FAILED, error=error, facts=facts)
                settled = await self.database.surely(store.fail, turn, final, goes_on=failed.goes_on)
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
            policy=self.policy_for(self.planner.config(turn)),
            rng=self.rng,
            now=datetime.now(UTC),
            fallbacks=self.planner.fallbacks(turn),
        )

    async def _retry(
        self,
        turn: Claimed,
        ended: Ended,
        delay: timedelta,
        speaker: Speaker,
        failed: Failed,
        attempt: Attempt | None,
    ) -> Retrying:
        is_rung = delay <= self.broker_horizon
        retrying_at = await self.database.surely(store.retry, turn, ended, is_rung=is_rung, goes_on=failed.goes_on)
        speaker.say_retry("retry", error=ended.error, retrying_at=retrying_at, delay=delay)
        kind = ended.error.kind if ended.error else "failure"
        why = f"{kind}, next attempt in {delay.total_seconds():.1f} s"
        tried = f"{attempt.label}, " if attempt else ""
        return Retrying(delay, turn.attempt, line=why, label=f"{why}: {tried}chat {turn.chat_id}")

    async def _heal(self, turn: Claimed, ended: Ended, speaker: Speaker, broken: Attempt | None) -> Attempt:
        healed = await self.database.surely(self._store_heal, turn, ended)
        speaker.say_retry("heal", error=ended.error)
        if broken is not None:
            await self._count_break(broken)
        return healed

    def _store_heal(self, connection: Connection, turn: Claimed, ended: Ended) -> Attempt:
        return self.planner.begin(connection, store.heal(connection, turn, ended))

    async def _fall_back(
        self, turn: Claimed, ended: Ended, choice: Choice, speaker: Speaker, failed: Failed
    ) -> Attempt:
        following = await self.database.surely(self._store_fall_back, turn, ended, choice, goes_on=failed.goes_on)
        instead = following.turn
        speaker.say_retry("fall_back", error=ended.error, provider=instead.provider, model=instead.model)
        return following

    def _store_fall_back(
        self, connection: Connection, turn: Claimed, ended: Ended, choice: Choice, *, goes_on: bool
    ) -> Attempt:
        following = store.fall_back(connection, turn, ended, choice, goes_on=goes_on)
        return self.planner.begin(connection, following)

    async def _count_break(self, broken: Attempt) -> None:
        """Count the broken chain: in a transaction of its own, for all turns of a key count in one row."""
        config = self.planner.config(broken.turn)
        if config is None:
            return
        rest = timedelta(seconds=config.chain_rest_seconds)
        try:
            await self.database.once(
                chain_health.broke, broken.credential, tolerated=config.max_chain_breaks, rest=rest
            )
        except DBAPIError as error:
            log.warning("chain_break.uncounted", provider=broken.turn.provider, error=type(error).__name__)


def crashed(turn: Claimed, error: Exception) -> Failed:
    """Turn a fault of ours into a failure: by its class and its place, for its message may quote the chat."""
    facts = describe(error)
    log.error(
        "turn.crashed",
        turn_id=str(turn.id),
        attempt=turn.attempt,
        error=facts[0].names[0],
        trace="".join(traceback.format_tb(error.__traceback__)),
    )
    wordless = tuple(replace(fact, text="") for fact in facts)
    return Failed(failure=Failure(provider=turn.provider, exceptions=wordless))


def _ended(classified: Classified, failed: Failed, speaker: Speaker, attempt: Attempt | None) -> Ended:
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
        chained=None if attempt is None else attempt.call.is_chained,
        resumed=None if attempt is None else attempt.call.is_resumed,
        error=classified.error,
        facts={name: fact for name, fact in facts.items() if fact not in {None, ""}},
        response_id=failed.response_id,
        usage=failed.usage,
        first_event_at=speaker.first_event_at,
    )


def _log_failure(turn: Claimed, classified: Classified, decision: Decision) -> None:
    log.warning(
        "attempt.failed",
        turn_id=str(turn.id),
        step=turn.step,
        attempt=turn.attempt,
        epoch=turn.epoch,
        kind=str(classified.error.kind),
        status_code=classified.error.status_code,
        rule=classified.rule,
        chain_broken=classified.chain_broken,
        decision=type(decision).__name__.lower(),
        delay_s=round(decision.delay.total_seconds(), 3) if isinstance(decision, Retry) else None,
        falls_back_on=str(decision.to) if isinstance(decision, FallBack) else None,
    )
