"""One delivery of a turn, from claim to commit.

```
claim → plan → call → answer ─→ complete
  │      ↑  ↑    │      └→ tools, or a pause ─→ next step
  │      │  │    ├─ failure → classify → decide ─→ retry | give up
  │      │  │    └─ must rest ──→ park     │
  │      │  └──── heal | fall back ←───────┘
  └→ tools of a lost worker ─→ next step
```
Every arrow that writes is one statement or one transaction; none is open while the provider speaks or a tool runs.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeAlias, assert_never
from uuid import UUID

from psycopg import Error as PsycopgError
from sqlalchemy.exc import IntegrityError

from turnkeeper.states import TurnState
from turnkeeper_worker import store, tool_step
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import Lease, Stop
from turnkeeper_worker.live import Live
from turnkeeper_worker.model_step import Broken, ModelRunner, Show
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.outcomes import Dropped, Outcome
from turnkeeper_worker.planner import Attempt, Planner
from turnkeeper_worker.remedies import Remedies, crashed
from turnkeeper_worker.resources import Resources
from turnkeeper_worker.store import Claim, Claimed, Early, LeaseLost, NotMine, Taken
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.tool_step import ToolRunner, ToolStep

log = get_logger(__name__)

Work: TypeAlias = Attempt | ToolStep
"""What a turn under our lease waits for: the model, or tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRunner:
    """Runs turns.  Belongs to one event loop; the turns share it and know nothing of each other."""

    worker_id: UUID
    database: Database
    planner: Planner
    directory: str
    """What a claim needs to know of the providers."""
    model: ModelRunner
    tools: ToolRunner
    remedies: Remedies
    call_up: Callable[[], None]
    """Says that a turn of an owner was begun, of whom others stand back."""
    observer: Observer

    @classmethod
    def build(cls, has: Resources, *, live: Live, call_up: Callable[[], None], show: Show) -> Self:
        """Put a runner together from what its worker has."""
        planner = Planner(configs=has.configs, keys=has.keys, toolbox=has.toolbox, switchboard=has.switchboard)
        broker_horizon = timedelta(seconds=has.settings.broker_horizon_seconds)
        return cls(
            worker_id=has.me.id,
            database=has.database,
            planner=planner,
            directory=planner.directory(),
            model=ModelRunner(
                database=has.database,
                live=live,
                providers=has.providers,
                planner=planner,
                toolbox=has.toolbox,
                cooldowns=has.cooldowns,
                policy_for=has.settings.retry_policy,
                broker_horizon=broker_horizon,
                checkpoint_every=timedelta(seconds=has.settings.checkpoint_seconds),
                max_steps=has.settings.max_steps,
                show=show,
                observer=has.observer,
            ),
            tools=ToolRunner(database=has.database, live=live, toolbox=has.toolbox, planner=planner),
            remedies=Remedies(
                database=has.database,
                live=live,
                planner=planner,
                policy_for=has.settings.retry_policy,
                broker_horizon=broker_horizon,
                rng=has.rng,
                observer=has.observer,
            ),
            call_up=call_up,
            observer=has.observer,
        )

    async def run(self, lease: Lease) -> Outcome:
        """Run the turn that *lease* is for, as far as one delivery goes."""
        with self.observer.delivery(lease.turn_id):
            outcome = await self._run(lease, time.monotonic())
            self.observer.ended(lease.turn_id, outcome)
            return outcome

    async def _run(self, lease: Lease, began: float) -> Outcome:
        try:
            work = await self._take(lease.turn_id)
            if not isinstance(work, Attempt | ToolStep):
                return work
            lease.claimed(work.turn.epoch)
            self.observer.claimed(work.turn)
            if work.turn.others_stand_back:
                self.call_up()
            if work.turn.is_cancelled:
                lease.stop(Stop.CANCELLED)
            return await self._go(work, lease, began)
        except LeaseLost as lost:
            log.warning("turn.lease_lost", turn_id=str(lost.turn_id), epoch=lost.epoch)
            return Dropped("the lease was lost")

    async def _take(self, turn_id: UUID) -> Work | Outcome:
        while True:
            match await self._claim(turn_id):
                case Taken() as taken:
                    return await self._begin(taken)
                case Early(wait):
                    await asyncio.sleep(wait.total_seconds())
                case NotMine(state=state):
                    is_cancelled = state is TurnState.CANCELLED
                    return Dropped("not due, not first in its chat, or held by another worker", is_cancelled)
                case other:
                    assert_never(other)

    async def _claim(self, turn_id: UUID) -> Claim:
        try:
            return await self.database.surely_alone(store.claim, turn_id, self.worker_id, self.directory)
        except IntegrityError as error:
            if _breaks(error, "ix_turns_one_runs"):
                # Another turn of the chat was claimed in the same moment; the unique index decided.
                return NotMine()
            raise

    async def _begin(self, taken: Taken) -> Work | Outcome:
        turn = taken.turn
        try:
            if turn.runs_tools:
                return await self.database.surely(tool_step.take_over, turn)
            if (planned := self.planner.plan_taken(taken)) is not None:
                return planned
            return await self.database.surely(self.planner.plan_anew, turn)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a turn: what cannot be planned once never can
            self.observer.claimed(turn)
            return await self.remedies.apply(turn, crashed(turn, error), turn.elapsed)

    async def _go(self, work: Work, lease: Lease, began: float) -> Outcome:
        """Call the model and run tools in turn, until the delivery has its outcome."""
        while True:
            try:
                done = await self._do(work, lease, began)
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001 - the edge of a turn: what cannot be stored once never can
                done = await self.remedies.apply(work.turn, crashed(work.turn, error), _elapsed(work.turn, began))
            if not isinstance(done, Attempt | ToolStep):
                return done
            work = done

    async def _do(self, work: Work, lease: Lease, began: float) -> Work | Outcome:
        match work:
            case Attempt():
                ended = await self.model.run(work, lease, _elapsed(work.turn, began))
                if not isinstance(ended, Broken):
                    return ended
                elapsed = _elapsed(work.turn, began)
                return await self.remedies.apply(work.turn, ended.failed, elapsed, ended.speaker, work)
            case ToolStep():
                return await self.tools.run(work, lease)
            case other:
                assert_never(other)


def _elapsed(turn: Claimed, began: float) -> timedelta:
    return turn.elapsed + timedelta(seconds=time.monotonic() - began)


def _breaks(error: IntegrityError, constraint: str) -> bool:
    return isinstance(error.orig, PsycopgError) and error.orig.diag.constraint_name == constraint
