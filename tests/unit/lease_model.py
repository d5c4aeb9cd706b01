"""A model of how workers share turns, small enough to try every order in which things can happen.

`Model` is the protocol: the guarded writes of `store`, `upkeep` and `ledger`, the beliefs and clocks of `leases`,
and what goes wrong around them. Its transitions bear the names of the functions that they stand for. The rules can
be broken one by one, to see what each is for. `lease_checker` explores it.

Time is counted in ticks. A heartbeat is too old after two of them, by the database's clock; a worker believes in
its leases for one, by a clock that stands still while the worker does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

TTL = 2
PATIENCE = 1
MAX_LOST = 3
MAX_RINGS = 2
NOBODY = -1
WAITING = ("queued", "retrying")
FINAL = ("completed", "failed", "cancelled")

Place = tuple[int, int]
"""A step, and the number of an attempt at it."""


class Row(NamedTuple):
    """A turn, as PostgreSQL has it."""

    state: str = "queued"
    is_due: bool = False
    epoch: int = 0
    worker: int = NOBODY
    step: int = 1
    attempt: int = 0
    spent: int = 0
    healed: bool = False
    lost: int = 0
    runs_tools: bool = False
    is_asked: bool = False
    """Whether somebody asked the running turn to stop."""
    open_attempts: tuple[Place, ...] = ()


class Run(NamedTuple):
    """The ledger's row for the tool of the turn's first step."""

    state: str = ""
    """Nothing before it is entered; then started, finished or interrupted."""
    epoch: int = 0
    """The lease that it belongs to, which is not always the turn's: see `ledger`."""


class Life(NamedTuple):
    """What has happened to a turn, whatever its row says."""

    ends: int = 0
    answers: tuple[int, ...] = ()
    """The steps of the answers that were stored."""
    results: int = 0
    """How often the results of its tool were stored."""
    tool_starts: int = 0
    stale_writes: int = 0
    """Writes that got through though the epoch of what they changed was not their holder's."""


class Hand(NamedTuple):
    """What a worker believes of a turn, and what it is at."""

    doing: str
    """`call` and `tool` go on outside of the database; all else is the transaction that comes next."""
    epoch: int = 0
    step: int = 0
    attempt: int = 0
    spent: int = 0
    healed: bool = False
    runs_tools: bool = False


class Worker(NamedTuple):
    """A process: `well`, `cut off` from the database, `stalled` as a whole, or `dead`."""

    mode: str = "well"
    age: int = 0
    """Of its heartbeat, by the database's clock."""
    heard: int = 0
    """Since it last heard that a heartbeat counted, by its own clock."""
    hands: tuple[Hand | None, ...] = ()


class State(NamedTuple):
    """Everything at one moment."""

    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    lives: tuple[Life, ...]
    rings: tuple[int, ...]
    """The broker's messages for each turn."""
    workers: tuple[Worker, ...]
    troubles: int
    """How many more things go wrong."""
    cancels: int


Step = tuple[str, State]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How large the world is, and what can happen in it."""

    workers: int = 2
    turns: int = 1
    troubles: int = 2
    may: frozenset[str] = frozenset()
    """The troubles that can happen, and `fail`, `heal` and `tool` for what an attempt may lead to."""
    retries: int = 1
    cancels: int = 0
    idempotent: bool = False


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the protocol relies on; the model can do without, to show what for."""

    names_the_epoch: bool = True
    names_step_and_attempt: bool = True
    enters_runs_first: bool = True
    fences_itself: bool = True
    makes_only_the_head_due: bool = True
    claims_only_the_head: bool = True
    rings_again: bool = True
    frees_orphans: bool = True
    wakes_the_next: bool = True
    claims_only_while_fresh: bool = False
    """Whether a worker that comes back renews before it claims; the code does not see to it."""


@dataclass(frozen=True)
class Model:
    """The world of a scenario, under the rules."""

    scenario: Scenario
    rules: Rules = field(default_factory=Rules)

    def start(self) -> State:
        """Every turn is enqueued in one chat; of what is due, the broker was told."""
        turns, workers = self.scenario.turns, self.scenario.workers
        is_due = tuple(turn == 0 or not self.rules.makes_only_the_head_due for turn in range(turns))
        return State(
            rows=tuple(Row(is_due=due) for due in is_due),
            runs=(Run(),) * turns,
            lives=(Life(),) * turns,
            rings=tuple(map(int, is_due)),
            workers=(Worker(hands=(None,) * turns),) * workers,
            troubles=self.scenario.troubles,
            cancels=self.scenario.cancels,
        )

    def steps(self, now: State) -> Iterator[Step]:
        """Return everything that can happen next."""
        yield from self._tick(now)
        for turn in range(self.scenario.turns):
            yield from self._upkeep(now, turn)
            yield from self._broker(now, turn)
            yield from self._cancel_from_outside(now, turn)
        for worker in range(self.scenario.workers):
            yield from self._fate(now, worker)
            yield from self._beat(now, worker)
            for turn in range(self.scenario.turns):
                yield from self._deliver(now, worker, turn)
                yield from self._work(now, worker, turn)

    # Time, and what goes wrong.

    def _tick(self, now: State) -> Iterator[Step]:
        if any(self._must_give_up(worker) and _can_break_off(worker) for worker in now.workers):
            return
        older = tuple(_older(worker) for worker in now.workers)
        if older != now.workers:
            yield "a tick passes", now._replace(workers=older)

    def _must_give_up(self, worker: Worker) -> bool:
        is_awake = worker.mode in {"well", "cut off"}
        return self.rules.fences_itself and is_awake and worker.heard >= PATIENCE

    def _fate(self, now: State, worker: int) -> Iterator[Step]:
        me = now.workers[worker]
        if me.mode == "well":
            for trouble, mode in (("cut off", "cut off"), ("stall", "stalled"), ("kill", "dead")):
                if self._happens(now, trouble):
                    hands = (None,) * len(me.hands) if mode == "dead" else me.hands
                    changed = _with_worker(now, worker, me._replace(mode=mode, hands=hands))
                    yield f"{_name(worker)} is {mode}", _troubled(changed)
        elif me.mode != "dead":
            yield f"{_name(worker)} is well again", _with_worker(now, worker, me._replace(mode="well"))
        elif all(row.worker != worker for row in now.rows):
            yield f"{_name(worker)} is started anew", _with_worker(now, worker, Worker(hands=me.hands))

    def _happens(self, now: State, trouble: str) -> bool:
        return now.troubles > 0 and trouble in self.scenario.may

    # What any worker does for turns that nobody holds, and the broker.

    def _upkeep(self, now: State, turn: int) -> Iterator[Step]:
        row = now.rows[turn]
        if row.state == "retrying" and not row.is_due:
            yield f"the countdown of {_the(turn)} ends", _with_row(now, turn, row._replace(is_due=True))
        if row.is_due and not now.rings[turn] and self.rules.rings_again:
            yield f"take_due({_the(turn)})", _rung(now, turn)
        is_orphaned = row.state == "running" and now.workers[row.worker].age >= TTL
        if is_orphaned and self.rules.frees_orphans:
            yield f"rescue({_the(turn)})", self._release(now, turn)

    def _release(self, now: State, turn: int) -> State:
        row = now.rows[turn]
        free = row._replace(
            epoch=row.epoch + 1, lost=row.lost + 1, worker=NOBODY, open_attempts=(), state="queued", is_due=True
        )
        if row.is_asked or free.lost >= MAX_LOST:
            state = "cancelled" if row.is_asked else "failed"
            return self._ended(_with_row(now, turn, free._replace(state=state, is_due=False)), turn)
        return _rung(_with_row(now, turn, free), turn)

    def _ended(self, now: State, turn: int) -> State:
        """Count the end of a turn, and wake the next."""
        life = now.lives[turn]
        now = now._replace(lives=_put(now.lives, turn, life._replace(ends=life.ends + 1)))
        for other, row in enumerate(now.rows):
            if row.state not in FINAL:
                if row.state == "queued" and not row.is_due and self.rules.wakes_the_next:
                    return _rung(_with_row(now, other, row._replace(is_due=True)), other)
                break
        return now

    def _broker(self, now: State, turn: int) -> Iterator[Step]:
        rings = now.rings[turn]
        if rings and self._happens(now, "lose"):
            yield f"a message for {_the(turn)} is lost", _troubled(_rung(now, turn, -1))
        if 0 < rings < MAX_RINGS and self._happens(now, "double"):
            yield f"a message for {_the(turn)} is doubled", _troubled(_rung(now, turn))

    def _cancel_from_outside(self, now: State, turn: int) -> Iterator[Step]:
        row = now.rows[turn]
        if not now.cancels or row.state in FINAL or row.is_asked:
            return
        now = now._replace(cancels=now.cancels - 1)
        if row.state == "running":
            yield f"turns.cancel({_the(turn)})", _with_row(now, turn, row._replace(is_asked=True))
        else:
            ended = row._replace(state="cancelled", epoch=row.epoch + 1, is_due=False)
            yield f"turns.cancel({_the(turn)})", self._ended(_with_row(now, turn, ended), turn)

    # What a worker knows of its leases.

    def _beat(self, now: State, worker: int) -> Iterator[Step]:
        me = now.workers[worker]
        if self._must_give_up(me) and _can_break_off(me):
            hands = tuple(None if hand and _is_open(hand) else hand for hand in me.hands)
            yield f"{_name(worker)}: give_up", _with_worker(now, worker, me._replace(hands=hands))
        if me.mode != "well":
            return
        renewed = self._compare(_with_worker(now, worker, me._replace(age=0, heard=0)), worker)
        if renewed != now:
            yield f"{_name(worker)}: renew", renewed
        if me.age and self._happens(now, "lose answers"):
            unheard = _with_worker(now, worker, me._replace(age=0))
            yield f"{_name(worker)}: renew, but the answer is lost", _troubled(unheard)

    def _compare(self, now: State, worker: int) -> State:
        """Stop what was lost or cancelled, and give back what is ours without our knowing."""
        for turn, row in enumerate(now.rows):
            hand = now.workers[worker].hands[turn]
            is_ours = row.state == "running" and row.worker == worker
            if hand is None:
                now = self._release(now, turn) if is_ours else now
            elif _is_open(hand):
                if not (is_ours and row.epoch == hand.epoch):
                    now = _with_hand(now, worker, turn, None)
                elif row.is_asked:
                    now = _with_hand(now, worker, turn, hand._replace(doing="cancel"))
        return now

    # One delivery of a turn.

    def _deliver(self, now: State, worker: int, turn: int) -> Iterator[Step]:
        me = now.workers[worker]
        if me.mode != "well" or (me.heard and self.rules.claims_only_while_fresh):
            return
        hand = me.hands[turn]
        if now.rings[turn]:
            told = _rung(now, turn, -1)
            if hand is not None:
                yield f"{_name(worker)} drops a message for {_the(turn)}, which it holds", told
            else:
                yield from self._claim(told, worker, turn)
        if hand is not None and hand.doing == "claim":
            yield from self._claim(now, worker, turn)

    def _claim(self, now: State, worker: int, turn: int) -> Iterator[Step]:
        label = f"{_name(worker)}: claim({_the(turn)})"
        if not self._may_claim(now, turn):
            yield f"{label}: not mine", _with_hand(now, worker, turn, None)
            return
        after, hand = self._claimed(now, worker, turn)
        yield label, _with_hand(after, worker, turn, hand)
        if self._happens(now, "lose answers"):
            yield f"{label}, but the answer is lost", _troubled(_with_hand(after, worker, turn, Hand("claim")))

    def _may_claim(self, now: State, turn: int) -> bool:
        row = now.rows[turn]
        is_head = all(earlier.state in FINAL for earlier in now.rows[:turn])
        return row.state in WAITING and row.is_due and (is_head or not self.rules.claims_only_the_head)

    def _claimed(self, now: State, worker: int, turn: int) -> tuple[State, Hand]:
        """claim, which begins the attempt; one that finds tools being run takes them over next."""
        row = now.rows[turn]
        row = row._replace(
            state="running", is_due=False, worker=worker, epoch=row.epoch + 1, attempt=row.attempt + 1
        )
        if row.runs_tools:
            return _with_row(now, turn, row), _belief(row, "take_over")
        row = _begun(row)
        return _with_row(now, turn, row), _belief(row, "cancel" if row.is_asked else "call")

    def _taken_over(self, run: Run, epoch: int) -> Run:
        if run.state != "started":
            return run
        return run._replace(epoch=epoch) if self.scenario.idempotent else run._replace(state="interrupted")

    def _work(self, now: State, worker: int, turn: int) -> Iterator[Step]:
        mode, hand = now.workers[worker].mode, now.workers[worker].hands[turn]
        if hand is None or hand.doing == "claim" or mode == "stalled":
            return
        if hand.doing == "tool":
            life = now.lives[turn]
            ran = now._replace(lives=_put(now.lives, turn, life._replace(tool_starts=life.tool_starts + 1)))
            label = f"{_name(worker)} runs the tool of {_the(turn)}"
            yield label, _with_hand(ran, worker, turn, hand._replace(doing="close_run"))
        for write in self._writes(now, hand):
            if mode == "well":
                yield from self._write(now, worker, turn, hand._replace(doing=write))
            elif hand.doing != write:
                waits = _with_hand(now, worker, turn, hand._replace(doing=write))
                yield f"{_name(worker)}: {write}({_the(turn)}) waits for the database", waits

    def _writes(self, now: State, hand: Hand) -> Iterator[str]:
        """Return the transactions that may come next."""
        may = self.scenario.may
        if hand.doing == "call":
            yield "complete_step" if "tool" in may and hand.step == 1 else "complete"
            if "fail" in may:
                yield "retry" if hand.spent < self.scenario.retries else "fail"
            if "heal" in may and not hand.healed:
                yield "heal"
        elif hand.doing != "tool":
            yield hand.doing
        if _is_open(hand) and self._happens(now, "hand back"):
            yield "close_runs and hand_back" if hand.doing == "close_run" else "hand_back"

    def _write(self, now: State, worker: int, turn: int, hand: Hand) -> Iterator[Step]:
        label = f"{_name(worker)}: {hand.doing}({_the(turn)})"
        done = self._transact(now, turn, hand)
        if done is None:
            yield f"{label}: LeaseLost", _with_hand(now, worker, turn, None)
            return
        after, following = done
        if following is None and hand.doing.endswith("hand_back"):
            after = _troubled(after)
        yield label, _with_hand(after, worker, turn, following)
        if self._happens(after, "lose answers"):
            yield f"{label}, but the answer is lost", _troubled(_with_hand(after, worker, turn, hand))

    def _transact(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None] | None:
        """Return what the write leads to, and the worker's belief then; None where the guard is unmet."""
        is_run = hand.doing == "close_run" and self.rules.enters_runs_first
        if not (self._owns_run(now.runs[turn], hand) if is_run else self._owns(now.rows[turn], hand)):
            return None
        if hand.epoch != (now.runs if is_run else now.rows)[turn].epoch:
            life = now.lives[turn]
            now = now._replace(lives=_put(now.lives, turn, life._replace(stale_writes=life.stale_writes + 1)))
        return _WRITES[hand.doing](self, now, turn, hand)

    def _owns(self, row: Row, hand: Hand) -> bool:
        is_same_lease = row.epoch == hand.epoch or not self.rules.names_the_epoch
        is_same_place = (row.step, row.attempt, row.runs_tools) == (hand.step, hand.attempt, hand.runs_tools)
        return (
            row.state == "running" and is_same_lease and (is_same_place or not self.rules.names_step_and_attempt)
        )

    def _owns_run(self, run: Run, hand: Hand) -> bool:
        return run.state == "started" and (run.epoch == hand.epoch or not self.rules.names_the_epoch)

    # The transactions: the row as it is, the belief of whoever writes.

    def _take_over(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        run = self._taken_over(now.runs[turn], hand.epoch)
        doing = "tool" if run.state in {"", "started"} else "next_step"
        now = now._replace(runs=_put(now.runs, turn, run))
        return now, hand._replace(doing="cancel" if now.rows[turn].is_asked else doing)

    def _complete(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        left = _left(_answered(now, turn, hand), turn, hand, "completed")
        return self._ended(left, turn), None

    def _fail(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        return self._ended(_left(now, turn, hand, "failed"), turn), None

    def _cancel(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        """interrupt_rest and cancel, in one transaction."""
        now = _left(now, turn, hand, "cancelled")
        if now.runs[turn].state == "started":
            now = _with_run(now, turn, "interrupted")
        return self._ended(now, turn), None

    def _retry(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        now = _left(now, turn, hand, "retrying")
        row = now.rows[turn]._replace(spent=hand.spent + 1, is_due=now.rows[turn].is_asked)
        return _rung(_with_row(now, turn, row), turn), None

    def _hand_back(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        now = _left(now, turn, hand, "queued")
        return _rung(_with_row(now, turn, now.rows[turn]._replace(is_due=True)), turn), None

    def _hand_back_result(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        """close_runs and hand_back, in one transaction."""
        if now.runs[turn] == Run("started", hand.epoch):
            now = _with_run(now, turn, "finished")
        return self._hand_back(now, turn, hand)

    def _heal(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        row = _attempt_ended(now.rows[turn], hand)._replace(healed=True, attempt=hand.attempt + 1)
        row = _begun(row)
        return _with_row(now, turn, row), hand._replace(doing="call", healed=True, attempt=row.attempt)

    def _complete_step(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        """complete_step and, in the same transaction, open_runs."""
        now = _answered(now, turn, hand)
        if self.rules.enters_runs_first:
            now = now._replace(runs=_put(now.runs, turn, Run("started", hand.epoch)))
        row = _attempt_ended(now.rows[turn], hand)._replace(runs_tools=True)
        return _with_row(now, turn, row), hand._replace(doing="tool", runs_tools=True)

    def _close_run(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        return _with_run(now, turn, "finished"), hand._replace(doing="next_step")

    def _next_step(self, now: State, turn: int, hand: Hand) -> tuple[State, Hand | None]:
        """store_messages, next_step and begin, in one transaction."""
        life = now.lives[turn]
        now = now._replace(lives=_put(now.lives, turn, life._replace(results=life.results + 1)))
        fresh: dict[str, Any] = {"step": hand.step + 1, "attempt": 1, "spent": 0, "runs_tools": False}
        row = _begun(now.rows[turn]._replace(**fresh))
        return _with_row(now, turn, row), hand._replace(**fresh, doing="call")


Transaction = Callable[[Model, State, int, Hand], tuple[State, Hand | None]]
_WRITES: dict[str, Transaction] = {
    "take_over": Model._take_over,
    "complete": Model._complete,
    "complete_step": Model._complete_step,
    "close_run": Model._close_run,
    "next_step": Model._next_step,
    "retry": Model._retry,
    "heal": Model._heal,
    "fail": Model._fail,
    "cancel": Model._cancel,
    "hand_back": Model._hand_back,
    "close_runs and hand_back": Model._hand_back_result,
}


def _put(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _with_row(now: State, turn: int, row: Row) -> State:
    return now._replace(rows=_put(now.rows, turn, row))


def _with_run(now: State, turn: int, state: str) -> State:
    return now._replace(runs=_put(now.runs, turn, now.runs[turn]._replace(state=state)))


def _with_worker(now: State, worker: int, changed: Worker) -> State:
    return now._replace(workers=_put(now.workers, worker, changed))


def _with_hand(now: State, worker: int, turn: int, hand: Hand | None) -> State:
    me = now.workers[worker]
    return _with_worker(now, worker, me._replace(hands=_put(me.hands, turn, hand)))


def _rung(now: State, turn: int, more: int = 1) -> State:
    return now._replace(rings=_put(now.rings, turn, min(now.rings[turn] + more, MAX_RINGS)))


def _troubled(now: State) -> State:
    return now._replace(troubles=now.troubles - 1)


def _older(worker: Worker) -> Worker:
    if worker.mode == "well" and not (worker.age or worker.heard):
        # It renews all along.
        return worker
    is_frozen = worker.mode in {"stalled", "dead"}
    heard = worker.heard if is_frozen else min(worker.heard + 1, PATIENCE)
    return worker._replace(age=min(worker.age + 1, TTL), heard=heard)


def _is_open(hand: Hand) -> bool:
    """Tell whether a stop strikes at once; a claim and a last write are deaf to it."""
    return hand.doing in {"call", "tool", "close_run"}


def _can_break_off(worker: Worker) -> bool:
    return any(hand and _is_open(hand) for hand in worker.hands)


def _belief(row: Row, doing: str) -> Hand:
    return Hand(doing, row.epoch, row.step, row.attempt, row.spent, row.healed, row.runs_tools)


def _begun(row: Row) -> Row:
    return row._replace(open_attempts=(*row.open_attempts, (row.step, row.attempt)))


def _attempt_ended(row: Row, hand: Hand) -> Row:
    still = tuple(place for place in row.open_attempts if place != (hand.step, hand.attempt))
    return row._replace(open_attempts=still)


def _left(now: State, turn: int, hand: Hand, state: str) -> State:
    row = _attempt_ended(now.rows[turn], hand)
    return _with_row(now, turn, row._replace(state=state, worker=NOBODY))


def _answered(now: State, turn: int, hand: Hand) -> State:
    life = now.lives[turn]
    return now._replace(lives=_put(now.lives, turn, life._replace(answers=(*life.answers, hand.step))))


def _name(worker: int) -> str:
    return f"worker {'abcdefgh'[worker]}"


def _the(turn: int) -> str:
    return f"turn {turn + 1}"
