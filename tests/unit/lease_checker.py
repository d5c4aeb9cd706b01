"""Every order in which things can happen in the model of leases, each state of it judged.

`explore` visits every state that can be reached, the nearest first. The way that it returns to one that must not
be is as short as there is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from .lease_model import FINAL, Model, Row, Run, Scenario, State, Step, Worker


def _one_runs(now: State, _scenario: Scenario) -> bool:
    return sum(row.state == "running" for row in now.rows) <= 1


def _order_is_kept(now: State, _scenario: Scenario) -> bool:
    """A turn that was claimed has nothing unfinished before it."""
    for turn, row in enumerate(now.rows):
        was_claimed = row.attempt > 0
        if was_claimed and any(earlier.state not in FINAL for earlier in now.rows[:turn]):
            return False
    return True


def _ends_once(now: State, _scenario: Scenario) -> bool:
    return all(life.ends == (row.state in FINAL) for row, life in zip(now.rows, now.lives, strict=True))


def _is_answered_once(now: State, _scenario: Scenario) -> bool:
    return all(len(set(life.answers)) == len(life.answers) and life.results <= 1 for life in now.lives)


def _nothing_stale_is_written(now: State, _scenario: Scenario) -> bool:
    return not any(life.stale_writes for life in now.lives)


def _tools_run_once(now: State, scenario: Scenario) -> bool:
    return scenario.idempotent or all(life.tool_starts <= 1 for life in now.lives)


def _an_attempt_is_open_where_it_should_be(now: State, _scenario: Scenario) -> bool:
    return all(
        row.open_attempts == (((row.step, row.attempt),) if _calls_the_model(row) else ()) for row in now.rows
    )


def _calls_the_model(row: Row) -> bool:
    return row.state == "running" and not row.runs_tools


def _one_call_is_paid(now: State, _scenario: Scenario) -> bool:
    """A measure of cost: what a worker that was taken for dead still calls, is paid besides its successor's."""
    return all(_count(now.workers, turn) <= 1 for turn in range(len(now.rows)))


def _count(workers: Iterable[Worker], turn: int) -> int:
    return sum(hand is not None and hand.doing == "call" for hand in (worker.hands[turn] for worker in workers))


Invariant = Callable[[State, Scenario], bool]
INVARIANTS: Mapping[str, Invariant] = {
    "at most one turn of a chat runs": _one_runs,
    "no turn is claimed before an earlier one has ended": _order_is_kept,
    "a turn ends once": _ends_once,
    "a step is answered once": _is_answered_once,
    "no holder of an old epoch writes": _nothing_stale_is_written,
    "a tool that is not idempotent runs once": _tools_run_once,
    "a running turn has the one open attempt": _an_attempt_is_open_where_it_should_be,
}
COSTS: Mapping[str, Invariant] = {"one call to the provider is paid at a time": _one_call_is_paid}
FINAL_IS_FINAL = "a turn that has ended never changes"
NONE_IS_STUCK = "every turn can still end"


@dataclass(frozen=True)
class Trace:
    """The shortest way to a state that must not be."""

    broken: str
    first: State
    steps: tuple[Step, ...]

    def labels(self) -> tuple[str, ...]:
        """Return what happened, in order."""
        return tuple(label for label, _ in self.steps)

    def __str__(self) -> str:
        lines = [f"broken after {len(self.steps)} steps: {self.broken}"]
        before = self.first
        for number, (label, after) in enumerate(self.steps, start=1):
            changes = "; ".join(_changes(before, after))
            lines.append(f"{number:3}. {label:<56}{changes}".rstrip())
            before = after
        return "\n".join(lines)


def _changes(before: State, after: State) -> Iterator[str]:
    for turn in range(len(before.rows)):
        changed = [
            *_changed_fields(before.rows[turn], after.rows[turn]),
            *(f"run {change}" for change in _changed_fields(before.runs[turn], after.runs[turn])),
        ]
        if changed:
            yield f"turn {turn + 1}: {', '.join(changed)}"


def _changed_fields(before: Row | Run, after: Row | Run) -> Iterator[str]:
    for name, old, new in zip(before._fields, before, after, strict=True):
        if old != new and name not in {"open_attempts", "worker"}:
            yield f"{name} {new}"


@dataclass(frozen=True)
class Explored:
    """What a search found."""

    states: int
    trace: Trace | None
    """None where everything holds."""


class _Search:
    """The states that were found so far, each with the way to it."""

    def __init__(self, model: Model, invariants: Mapping[str, Invariant]) -> None:
        self._model = model
        self._invariants = invariants
        self._first = model.start()
        self._came: dict[State, tuple[State, str] | None] = {self._first: None}
        self._leads_from: dict[State, list[State]] = {}

    def run(self) -> Explored:
        """Look at every state, the nearest first, until one breaks an invariant."""
        waiting = deque([self._first])
        while waiting:
            now = waiting.popleft()
            for label, after in self._model.steps(now):
                self._leads_from.setdefault(after, []).append(now)
                is_new = after not in self._came
                if is_new:
                    self._came[after] = (now, label)
                    waiting.append(after)
                if broken := self._judge(now, after, is_new=is_new):
                    return self._explored(Trace(broken, self._first, (*self._way(now), (label, after))))
        stuck = self._stuck()
        return self._explored(stuck and Trace(NONE_IS_STUCK, self._first, self._way(stuck)))

    def _judge(self, before: State, after: State, *, is_new: bool) -> str | None:
        for old, new in zip(before.rows, after.rows, strict=True):
            if old.state in FINAL and old != new:
                return FINAL_IS_FINAL
        if is_new:
            for name, holds in self._invariants.items():
                if not holds(after, self._model.scenario):
                    return name
        return None

    def _stuck(self) -> State | None:
        """Return the nearest state from which no way leads to the end of every turn."""
        hopeful = {state for state in self._came if all(row.state in FINAL for row in state.rows)}
        waiting = list(hopeful)
        while waiting:
            for before in self._leads_from.get(waiting.pop(), ()):
                if before not in hopeful:
                    hopeful.add(before)
                    waiting.append(before)
        return next((state for state in self._came if state not in hopeful), None)

    def _way(self, to: State) -> tuple[Step, ...]:
        steps: list[Step] = []
        while (came := self._came[to]) is not None:
            before, label = came
            steps.append((label, to))
            to = before
        return tuple(reversed(steps))

    def _explored(self, trace: Trace | None) -> Explored:
        return Explored(len(self._came), trace)


def explore(model: Model, invariants: Mapping[str, Invariant] = INVARIANTS) -> Explored:
    """Try everything that can happen in the model, in every order."""
    return _Search(model, invariants).run()
