"""The second half of a step: the tools that the model called run side by side; their results are told in order.

```
answer stored, runs entered → run → every result entered → results stored, next step begun
```
A worker that dies here leaves the ledger behind: its successor runs what may run again, and tells the model of the
rest that it was interrupted.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never
from uuid import UUID

from sqlalchemy import Connection

from turnkeeper.messages import Message, ToolResult
from turnkeeper.states import AttemptOutcome
from turnkeeper.tools import ToolContext
from turnkeeper_worker import ledger, store
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import Lease, Stop
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.live import Live
from turnkeeper_worker.outcomes import Cancelled, Completed, Dropped, HandedBack, Outcome
from turnkeeper_worker.planner import Attempt, Planner
from turnkeeper_worker.replay import interrupted
from turnkeeper_worker.speaker import Speaker
from turnkeeper_worker.steps import results_message
from turnkeeper_worker.store import Claimed, Ended, Settled
from turnkeeper_worker.tools import Toolbox


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStep:
    """A turn under our lease whose tools are to be run."""

    turn: Claimed
    runs: tuple[Run, ...]
    awaits_more: bool
    """Whether calls are open besides, for the producer to answer."""


def take_over(connection: Connection, turn: Claimed) -> ToolStep:
    """Go on with the tools of a turn whose worker was lost.  Raises LeaseLost."""
    # Since the claim it may have become another worker's, which runs them by now.
    store.confirm(connection, turn)
    runs = ledger.take_over(connection, turn)
    ours = {run.call.call_id for run in runs}
    awaits_more = not ours.issuperset(ledger.calls_of_step(connection, turn))
    return ToolStep(turn=turn, runs=runs, awaits_more=awaits_more)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRunner:
    """Runs the tools of a step, and takes the turn on from there."""

    database: Database
    live: Live
    toolbox: Toolbox
    planner: Planner

    async def run(self, step: ToolStep, lease: Lease) -> Attempt | Outcome:
        """Run what has no result yet; return the next attempt, or how the delivery ended.  Raises LeaseLost."""
        results = {run.call.call_id: run.result for run in step.runs if run.result is not None}
        lease.listen()
        try:
            # A stop that came before we listened strikes here.
            await asyncio.sleep(0)
            await _together(self._run(step.turn, run, results) for run in step.runs if run.result is None)
        except asyncio.CancelledError:
            if lease.stopped is None:
                raise
            return await self._stop(step, results, lease.stopped)
        finally:
            lease.settle()
        return await self._move_on(step, results)

    async def _run(self, turn: Claimed, run: Run, results: dict[str, ToolResult]) -> None:
        call_id = run.call.call_id
        context = ToolContext(
            turn_id=turn.id, chat_id=turn.chat_id, owner=turn.owner, step=turn.step, call_id=call_id
        )
        results[call_id] = await self.toolbox.only(turn.tools).run(run.call, context)
        await self.database.surely(ledger.close_run, turn, results[call_id])

    async def _move_on(self, step: ToolStep, results: Mapping[str, ToolResult]) -> Attempt | Outcome:
        told = _told(step, results)
        moved = await self.database.surely(self._store_results, step, told)
        speaker = Speaker(self.live, step.turn)
        speaker.say_committed(told, moved.position)
        if moved.attempt is not None:
            return moved.attempt
        speaker.say_completed(step.turn.usage, "tool_calls")
        return Completed(f"{step.turn.provider} waits for tools of the producer", moved.woken)

    def _store_results(self, connection: Connection, step: ToolStep, told: Sequence[Message]) -> "_Moved":
        position = store.store_messages(connection, step.turn, told)
        if step.awaits_more:
            return _Moved(position, woken=store.complete_after_tools(connection, step.turn))
        return _Moved(position, self.planner.begin(connection, store.next_step(connection, step.turn)))

    async def _stop(self, step: ToolStep, results: Mapping[str, ToolResult], why: Stop) -> Outcome:
        match why:
            case Stop.CANCELLED:
                told = _told(step, results)
                settled = await self.database.surely(_cancel, step, results, told)
                Speaker(self.live, step.turn).say_cancelled(told, settled.position)
                return Cancelled(settled.woken)
            case Stop.HANDED_BACK:
                await self.database.surely(_hand_back, step, results)
                Speaker(self.live, step.turn).say_retry("handed_back")
                return HandedBack(step.turn.attempt)
            case Stop.LOST:
                return Dropped("the lease was lost")
            case other:
                assert_never(other)


@dataclass(frozen=True, slots=True)
class _Moved:
    """Where the turn went after its tools: on to an attempt, or to its end."""

    position: int
    attempt: Attempt | None = None
    woken: UUID | None = None


async def _together(runs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first failure stops the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _told(step: ToolStep, results: Mapping[str, ToolResult]) -> tuple[Message, ...]:
    """Return the message of all results in the order of the calls; a run that gave none was interrupted."""
    ids = (run.call.call_id for run in step.runs)
    return results_message(results.get(call_id) or interrupted(call_id) for call_id in ids)


def _cancel(
    connection: Connection, step: ToolStep, results: Mapping[str, ToolResult], told: Sequence[Message]
) -> Settled:
    ledger.close_runs(connection, step.turn, results.values())
    ledger.interrupt_rest(connection, step.turn)
    return store.cancel(connection, step.turn, Ended(outcome=AttemptOutcome.CANCELLED), told)


def _hand_back(connection: Connection, step: ToolStep, results: Mapping[str, ToolResult]) -> None:
    """Leave to the successor what is known; of what still ran, it decides by the ledger."""
    ledger.close_runs(connection, step.turn, results.values())
    store.hand_back(connection, step.turn, Ended(outcome=AttemptOutcome.HANDED_BACK))
