"""The first half of a step: the model is called, and its answer stored.

What follows the answer is decided by `steps`; what follows a failure, by whoever called.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeAlias, assert_never
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from turnkeeper.errors import ChatError, terminal_copy
from turnkeeper.messages import Message
from turnkeeper.states import AttemptOutcome
from turnkeeper_worker import chain_health, ledger, store
from turnkeeper_worker.checkpoint import Checkpoint, Piece
from turnkeeper_worker.config import ProviderConfig, RetryPolicy
from turnkeeper_worker.cooldown import Cooldowns, Patience, Permit, Rest, as_failure
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import Lease, Stop
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.live import Live
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.outcomes import Cancelled, Completed, Dropped, HandedBack, Outcome, Parked
from turnkeeper_worker.planner import Attempt, Planner
from turnkeeper_worker.providers import Answer, Failed, Provider, Result, Running, unusable
from turnkeeper_worker.remedies import crashed
from turnkeeper_worker.speaker import Speaker
from turnkeeper_worker.steps import Finish, GoOn, RunTools, results_message, what_follows
from turnkeeper_worker.store import Claimed, Ended, LeaseLost, Origin, Settled
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.tool_step import ToolStep
from turnkeeper_worker.tools import Toolbox

log = get_logger(__name__)

Next: TypeAlias = Attempt | ToolStep | Outcome
"""What a step leads to: another one, its own tools, or the end of the delivery."""

Show = Callable[[UUID, str], None]
"""Shows operators what a turn is at, in one line; returns at once."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The attempt failed."""

    failed: Failed
    speaker: Speaker


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRunner:
    """Makes attempts, and stores their answers."""

    database: Database
    live: Live
    providers: Mapping[str, Provider]
    planner: Planner
    toolbox: Toolbox
    cooldowns: Cooldowns
    policy_for: Callable[[ProviderConfig | None], RetryPolicy]
    broker_horizon: timedelta
    checkpoint_every: timedelta
    max_steps: int
    show: Show
    observer: Observer

    async def run(self, attempt: Attempt, lease: Lease, elapsed: timedelta) -> Next | Broken:
        """Make the attempt, unless its provider must rest.  Raises LeaseLost.

        Returns what is to be done next, or how the delivery ended.
        """
        speaker = self._speaker(attempt)
        try:
            result = await self._call(attempt, speaker, lease, elapsed)
        except asyncio.CancelledError:
            if lease.stopped is None:
                raise
            return await self._stop(attempt, speaker, lease.stopped)
        if lease.stopped is Stop.CANCELLED and isinstance(result, Failed):
            return await self._stop(attempt, speaker, lease.stopped)
        match result:
            case Answer():
                following = await self._take_answer(attempt, result, speaker)
                self.observer.answered(attempt.turn, result, speaker.watch)
                return following
            case Failed():
                return Broken(result, speaker)
            case Rest():
                return await self._park(attempt.turn, result, speaker)
            case other:
                assert_never(other)

    async def _call(self, attempt: Attempt, speaker: Speaker, lease: Lease, elapsed: timedelta) -> Result | Rest:
        lease.listen()
        try:
            # A stop that came before we listened strikes here.
            await asyncio.sleep(0)
            match await self._ask_leave(attempt, elapsed):
                case Rest(is_too_long=True) as rest:
                    return Failed(failure=as_failure(rest, attempt.turn.provider))
                case Rest() as rest:
                    return rest
                case permit:
                    speaker.permit = permit
            self._say_started(attempt, speaker)
            return await self._provider(attempt).call(attempt.call, speaker)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a turn: a fault of ours ends it, never the worker
            return crashed(attempt.turn, error)
        finally:
            speaker.watch.stop()
            lease.settle()

    async def _ask_leave(self, attempt: Attempt, elapsed: timedelta) -> Permit | Rest:
        """Ask the cooldown; what asks for no new response needs no leave."""
        if attempt.obstacle is not None or attempt.call.is_resumed:
            return Permit()
        policy = self.policy_for(self.planner.config(attempt.turn))
        patience = Patience(wait=policy.turn_deadline - elapsed, rest=policy.max_hint)
        return await self.cooldowns.ask(attempt.credential, attempt.turn.id, patience)

    def _say_started(self, attempt: Attempt, speaker: Speaker) -> None:
        speaker.say_started(attempt.call)
        self.show(attempt.turn.id, f"{attempt.label}, chat {attempt.turn.chat_id}")
        if attempt.call.is_resumed and attempt.turn.checkpoint is not None:
            speaker.say_again(attempt.turn.checkpoint.pieces)

    def _provider(self, attempt: Attempt) -> Provider:
        if (obstacle := attempt.obstacle) is not None:
            return unusable(obstacle.provider, obstacle.signal, obstacle.why)
        return self.providers[attempt.turn.provider]

    def _speaker(self, attempt: Attempt) -> Speaker:
        keep = partial(self._keep, attempt) if attempt.call.background else None
        watch = self.observer.calling(attempt.turn, attempt.call)
        return Speaker(self.live, attempt.turn, keep, self.checkpoint_every, watch)

    async def _keep(self, attempt: Attempt, running: Running, pieces: tuple[Piece, ...]) -> None:
        """Write down how far a background response has come; only the first time must it be written."""
        checkpoint = Checkpoint(
            response_id=running.response_id,
            credential=attempt.credential,
            began_at=running.began_at,
            cursor=running.cursor,
            pieces=pieces,
        )
        if not pieces:
            return await self._keep_surely(attempt, checkpoint)
        try:
            return await self.database.once(store.keep, attempt.turn, checkpoint)
        except DBAPIError as error:
            log.warning("checkpoint.missed", turn_id=str(attempt.turn.id), error=type(error).__name__)

    async def _keep_surely(self, attempt: Attempt, checkpoint: Checkpoint) -> None:
        try:
            await self.database.surely(store.keep, attempt.turn, checkpoint)
        except LeaseLost:
            # Our successor asks anew and does not know of this one.
            await self.providers[attempt.turn.provider].call_off(checkpoint.response_id)
            raise

    async def _take_answer(self, attempt: Attempt, answer: Answer, speaker: Speaker) -> Next:
        match what_follows(answer, attempt.turn, self.toolbox, max_steps=self.max_steps):
            case Finish(why=why, results=results):
                return await self._complete(attempt, answer, speaker, why, results_message(results))
            case GoOn():
                following, position = await self.database.surely(self._store_pause, attempt, answer, speaker)
                speaker.say_committed(answer.messages, position)
                return following
            case RunTools(runs=runs, awaits_more=awaits_more):
                turn, position = await self.database.surely(self._store_calls, attempt, answer, speaker, runs)
                speaker.say_committed(answer.messages, position)
                return ToolStep(turn=turn, runs=runs, awaits_more=awaits_more)
            case other:
                assert_never(other)

    async def _complete(
        self, attempt: Attempt, answer: Answer, speaker: Speaker, why: str, told: Sequence[Message]
    ) -> Completed:
        said = (*answer.messages, *told)
        settled = await self._store_end(attempt, answer, speaker, said)
        usage = store.total(attempt.turn.usage, answer.usage)
        speaker.say_committed(said, settled.position)
        speaker.say_completed(usage, why)
        return Completed(_summary(attempt, usage), settled.woken)

    async def _store_end(
        self, attempt: Attempt, answer: Answer, speaker: Speaker, said: Sequence[Message]
    ) -> Settled:
        """Store the last answer of a turn; most are stored by one statement."""
        what = attempt.turn, _ended_well(attempt, answer, speaker), said, _origin(attempt, answer)
        if not _mends_a_chain(attempt):
            settled = await self.database.surely_alone(store.complete_at_once, *what)
            if settled is not None:
                return settled

        def complete(connection: Connection) -> Settled:
            _note_chain(connection, attempt)
            return store.complete(connection, *what)

        return await self.database.surely(complete)

    def _store_pause(
        self, connection: Connection, attempt: Attempt, answer: Answer, speaker: Speaker
    ) -> tuple[Attempt, int]:
        turn, position = self._store_step(connection, attempt, answer, speaker)
        return self.planner.begin(connection, store.next_step(connection, turn)), position

    def _store_calls(
        self, connection: Connection, attempt: Attempt, answer: Answer, speaker: Speaker, runs: tuple[Run, ...]
    ) -> tuple[Claimed, int]:
        turn, position = self._store_step(connection, attempt, answer, speaker, runs_tools=True)
        ledger.open_runs(connection, turn, runs)
        return turn, position

    def _store_step(
        self,
        connection: Connection,
        attempt: Attempt,
        answer: Answer,
        speaker: Speaker,
        *,
        runs_tools: bool = False,
    ) -> tuple[Claimed, int]:
        _note_chain(connection, attempt)
        ended, origin = _ended_well(attempt, answer, speaker), _origin(attempt, answer)
        return store.complete_step(connection, attempt.turn, ended, answer.messages, origin, runs_tools=runs_tools)

    async def _stop(self, attempt: Attempt, speaker: Speaker, why: Stop) -> Outcome:
        match why:
            case Stop.CANCELLED:
                return await self._cancel(attempt, speaker)
            case Stop.HANDED_BACK:
                return await self._hand_back(attempt, speaker)
            case Stop.LOST:
                return Dropped("the lease was lost")
            case other:
                assert_never(other)

    async def _cancel(self, attempt: Attempt, speaker: Speaker) -> Cancelled:
        turn, said = attempt.turn, speaker.partial()
        ended = _broken_off(AttemptOutcome.CANCELLED, attempt, speaker)
        settled = await self.database.surely(store.cancel, turn, ended, said)
        speaker.say_cancelled(said, settled.position)
        self.observer.broken_off(turn, AttemptOutcome.CANCELLED, speaker.usage, speaker.watch)
        return Cancelled(settled.woken)

    async def _park(self, turn: Claimed, rest: Rest, speaker: Speaker) -> Parked:
        """Give the slot to others until the provider may be called."""
        name, seconds = turn.provider, rest.wait.total_seconds()
        is_rung = rest.wait <= self.broker_horizon
        back_at = await self.database.surely(store.park, turn, rest.wait, is_rung=is_rung)
        error = ChatError(kind=rest.kind, message=terminal_copy(rest.kind, name), provider=name, retryable=True)
        speaker.say_retry("cooldown", error=error, retrying_at=back_at, delay=rest.wait)
        log.info("turn.parked", turn_id=str(turn.id), provider=name, kind=str(rest.kind), wait_s=round(seconds, 3))
        why = f"waits for {name} ({rest.kind}), back in {seconds:.1f} s"
        return Parked(rest.wait, turn.attempt - 1, line=why, label=f"{why}: chat {turn.chat_id}")

    async def _hand_back(self, attempt: Attempt, speaker: Speaker) -> HandedBack:
        turn, ended = attempt.turn, _broken_off(AttemptOutcome.HANDED_BACK, attempt, speaker)
        await self.database.surely(store.hand_back, turn, ended)
        speaker.say_retry("handed_back")
        self.observer.broken_off(turn, AttemptOutcome.HANDED_BACK, speaker.usage, speaker.watch)
        return HandedBack(turn.attempt)


def _origin(attempt: Attempt, answer: Answer) -> Origin:
    return Origin(
        credential=attempt.credential,
        response_id=answer.response_id,
        anchors=answer.can_anchor,
        terms=attempt.terms,
    )


def _mends_a_chain(attempt: Attempt) -> bool:
    return attempt.call.is_chained and attempt.health.breaks > 0


def _note_chain(connection: Connection, attempt: Attempt) -> None:
    """Count a chain that held, where some had not; the count of those that always hold is never touched."""
    if _mends_a_chain(attempt):
        chain_health.held(connection, attempt.credential)


def _ended_well(attempt: Attempt, answer: Answer, speaker: Speaker) -> Ended:
    return Ended(
        outcome=AttemptOutcome.COMPLETED,
        chained=attempt.call.is_chained,
        resumed=attempt.call.is_resumed,
        response_id=answer.response_id,
        usage=answer.usage,
        first_event_at=speaker.first_event_at,
    )


def _broken_off(outcome: AttemptOutcome, attempt: Attempt, speaker: Speaker) -> Ended:
    return Ended(
        outcome=outcome,
        chained=attempt.call.is_chained,
        resumed=attempt.call.is_resumed,
        usage=speaker.usage,
        first_event_at=speaker.first_event_at,
    )


def _summary(attempt: Attempt, usage: Mapping[str, int] | None) -> str:
    """Return what Flower shows as the result: one line, no words of the chat."""
    spent = usage or {}
    return f"{attempt.label}, in={spent.get('input_tokens', '?')} out={spent.get('output_tokens', '?')}"
