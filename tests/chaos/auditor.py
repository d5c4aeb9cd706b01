"""Looks through what a storm left behind for what a user or an owner would complain of.  Pure.

One function per promise. Each takes the evidence and yields findings; none means that the promise was kept.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import combinations
from typing import TypeAlias, TypeVar
from uuid import UUID

from turnkeeper.states import FINAL_STATES, AttemptOutcome, OnBusy, ToolRunState, TurnState
from turnkeeper_worker.upkeep import MAX_LOST

from .evidence import Attempt, Call, Evidence, Said, ToolRun, Turn
from .mischief import OUTAGES, Prank
from .waits import BOUND, harm_of, waits

ItemT = TypeVar("ItemT")
KeyT = TypeVar("KeyT", bound=Hashable)

MOMENT = timedelta(seconds=1.5)
"""How long it may take, on a busy machine, until what just happened is written down."""
STARTS_WITHIN = timedelta(seconds=20)
"""How long a worker may take to come up; its servers have to be there."""
HARMLESS = frozenset({"answer", None})
"""Steps of the simulator's scripts that give nobody a reason to try again."""
ENDS = {
    TurnState.COMPLETED: "turn.completed",
    TurnState.FAILED: "turn.failed",
    TurnState.CANCELLED: "turn.cancelled",
}


class Complaint(StrEnum):
    """What can be wrong."""

    LOST = "lost turn"
    DOUBLED = "doubled answer"
    WRONG_TEXT = "wrong text"
    UNASKED_END = "ended as nobody asked"
    ORDER = "order"
    TOOL_TWICE = "tool run twice"
    LEDGER = "tool not in the ledger"
    FOLLOWER = "follower differs"
    BUDGET = "attempt spent for nothing"
    GENERATIONS = "generated twice"
    WAIT = "waited too long"
    WORKER = "worker ended"
    TROUBLE = "user troubled"


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    complaint: Complaint
    detail: str
    turn_id: UUID | None = None


Check: TypeAlias = Callable[[Evidence], Iterator[Finding]]


def audit(evidence: Evidence) -> list[Finding]:
    """Return every finding of every check."""
    return [finding for check in CHECKS for finding in check(evidence)]


def every_turn_is_stored_once_and_has_ended(evidence: Evidence) -> Iterator[Finding]:
    """A turn that a user asked for is there once, and is over."""
    rows = _by(evidence.turns, lambda turn: turn.idempotency_key)
    for key in evidence.planned:
        if len(rows[key]) != 1:
            complaint = Complaint.DOUBLED if rows[key] else Complaint.LOST
            yield Finding(complaint, f"{key} is stored {len(rows[key])} times")
    for turn in evidence.turns:
        if turn.state not in FINAL_STATES:
            yield Finding(Complaint.LOST, f"{turn.idempotency_key} is still {turn.state}", turn.id)


def a_turn_ends_as_it_was_meant_to(evidence: Evidence) -> Iterator[Finding]:
    """Only what is refused fails, only what somebody cancels is cancelled."""
    interrupted = set(_interrupted(evidence))
    calls = _of_turn(evidence.calls)
    for turn in evidence.turns:
        is_refused = any(evidence.planned[call.script].fails for call in calls[turn.id] if call.script)
        planned = evidence.planned[turn.idempotency_key]
        is_cancellable = planned.cancel_after is not None or turn.id in interrupted
        match turn.state:
            case TurnState.FAILED if not is_refused and not _is_poisoned(turn, evidence):
                yield Finding(Complaint.UNASKED_END, f"failed: {turn.error}", turn.id)
            case TurnState.COMPLETED if is_refused:
                yield Finding(Complaint.UNASKED_END, "completed, though it was refused", turn.id)
            case TurnState.CANCELLED if not is_cancellable:
                yield Finding(Complaint.UNASKED_END, "cancelled, though nobody did it", turn.id)
            case _:
                pass


def _is_poisoned(turn: Turn, evidence: Evidence) -> bool:
    """Tell whether monkeys took the turn from its workers so often that it is taken for what killed them."""
    taken = [one for one in evidence.attempts if one.turn_id == turn.id and one.outcome == AttemptOutcome.LOST]
    return sum(bool(harm_of(evidence, one, one.finished_at or one.started_at)) for one in taken) >= MAX_LOST


def _interrupted(evidence: Evidence) -> Iterator[UUID]:
    for chat in _by(evidence.turns, lambda turn: turn.chat_id).values():
        for earlier, later in combinations(sorted(chat, key=lambda turn: turn.seq), 2):
            if evidence.planned[later.idempotency_key].on_busy is OnBusy.INTERRUPT:
                yield earlier.id


def each_step_has_one_answer(evidence: Evidence) -> Iterator[Finding]:
    """A completed step has one completed attempt, and the messages that it brought, without gaps."""
    attempts, said = _of_turn(evidence.attempts), _of_turn(evidence.said)
    for turn in evidence.turns:
        completed = Counter(one.step for one in attempts[turn.id] if one.outcome == AttemptOutcome.COMPLETED)
        answers = [one for one in said[turn.id] if one.role == "assistant"]
        doubled = [step for step, count in completed.items() if count > 1]
        if doubled or _repeats(one.response_id for one in answers if one.response_id):
            yield Finding(Complaint.DOUBLED, f"steps {doubled} have two answers", turn.id)
        kept = [one for one in answers if one.response_id]
        if len(kept) != len(completed):
            yield Finding(Complaint.DOUBLED, f"{len(kept)} answers of {len(completed)} steps", turn.id)
        if turn.state == TurnState.COMPLETED and len(answers) != turn.step:
            yield Finding(Complaint.LOST, f"{len(answers)} answers, and {turn.step} steps", turn.id)
        if [one.position for one in said[turn.id]] != list(range(len(said[turn.id]))):
            yield Finding(Complaint.LOST, "messages are missing", turn.id)
        if any(one.outcome == AttemptOutcome.RUNNING for one in attempts[turn.id]):
            yield Finding(Complaint.LOST, "an attempt never ended", turn.id)


def each_answer_is_what_the_provider_said(evidence: Evidence) -> Iterator[Finding]:
    """What is stored is the text of the generation whose response was committed; if cut short, its beginning."""
    calls, attempts = _of_turn(evidence.calls), _of_turn(evidence.attempts)
    for said in evidence.said:
        if said.role == "user":
            continue
        texts = {_text(evidence, call): call.response_id for call in calls[said.turn_id] if call.generated}
        if said.response_id is None:
            if not any(text.startswith(said.text) for text in texts):
                yield Finding(Complaint.WRONG_TEXT, f"nobody began with {said.text!r}", said.turn_id)
        elif texts.get(said.text) != said.response_id:
            yield Finding(Complaint.WRONG_TEXT, f"{said.response_id} did not say {said.text!r}", said.turn_id)
        elif said.response_id not in _completed(attempts[said.turn_id]):
            yield Finding(Complaint.WRONG_TEXT, f"{said.response_id} was not committed", said.turn_id)


def _text(evidence: Evidence, call: Call) -> str:
    return evidence.planned[call.script].said(call.step_number) if call.script else ""


def _completed(attempts: Iterable[Attempt]) -> set[str | None]:
    return {one.response_id for one in attempts if one.outcome == AttemptOutcome.COMPLETED}


def turns_of_a_chat_run_in_order(evidence: Evidence) -> Iterator[Finding]:
    """No turn starts, or reaches the provider, before the one before it has ended."""
    arrivals = {
        turn_id: min(call.arrived_at for call in calls) for turn_id, calls in _of_turn(evidence.calls).items()
    }
    for chat in _by(evidence.turns, lambda turn: turn.chat_id).values():
        for earlier, later in combinations(sorted(chat, key=lambda turn: turn.seq), 2):
            begun = [at for at in (later.started_at, arrivals.get(later.id)) if at is not None]
            if begun and (earlier.finished_at is None or min(begun) < earlier.finished_at):
                detail = f"began at {min(begun)}, when turn {earlier.id} had not ended ({earlier.finished_at})"
                yield Finding(Complaint.ORDER, detail, later.id)


def no_tool_runs_twice_that_must_not(evidence: Evidence) -> Iterator[Finding]:
    """By the tools' own notes: what is not idempotent starts once, and nothing starts without its row."""
    ledger = {run.key: run for run in evidence.tool_runs}
    starts = Counter(note.key for note in evidence.tool_notes if note.at == "start")
    ends = Counter(note.key for note in evidence.tool_notes if note.at == "end")
    for key, count in starts.items():
        turn_id = UUID(key.partition("/")[0])
        if key not in ledger:
            yield Finding(Complaint.LEDGER, f"{key} ran, and has no row", turn_id)
        elif count > 1 and not ledger[key].idempotent:
            yield Finding(Complaint.TOOL_TWICE, f"{key} ran {count} times", turn_id)
    for run in evidence.tool_runs:
        if run.state == ToolRunState.FINISHED and not ends[run.key]:
            yield Finding(Complaint.LEDGER, f"{run.key} has a result, and never ended", run.turn_id)
        if run.state == ToolRunState.STARTED:
            yield Finding(Complaint.LEDGER, f"{run.key} was left open", run.turn_id)


def each_call_of_a_tool_has_one_result(evidence: Evidence) -> Iterator[Finding]:
    """What the model asked for in a step that is over is answered once."""
    finished = {turn.id for turn in evidence.turns if turn.state == TurnState.COMPLETED}
    for turn_id, said in _of_turn(evidence.said).items():
        calls = Counter(call for one in said for call in one.calls)
        results = Counter(call for one in said for call in one.results)
        if _repeats(results.elements()) or results - calls:
            yield Finding(Complaint.DOUBLED, f"results {dict(results)} of calls {dict(calls)}", turn_id)
        if turn_id in finished and calls - results:
            yield Finding(Complaint.LOST, f"no results of {dict(calls - results)}", turn_id)


def readers_are_left_with_what_is_stored(evidence: Evidence) -> Iterator[Finding]:
    """Whenever they came and went, all see the stored text, and hear how the turn ended."""
    said = _of_turn(evidence.said)
    turns = {turn.id: turn for turn in evidence.turns}
    for heard in evidence.heard:
        turn = turns.get(heard.turn_id)
        stored = "".join(one.text for one in said[heard.turn_id] if one.role == "assistant")
        if turn is None:
            yield Finding(Complaint.LOST, "somebody reads a turn that is not stored", heard.turn_id)
        elif heard.end is None or heard.end != ENDS.get(TurnState(turn.state)):
            yield Finding(Complaint.FOLLOWER, f"heard {heard.end} of a turn that is {turn.state}", turn.id)
        elif heard.text != stored:
            yield Finding(Complaint.FOLLOWER, f"reads {heard.text!r}, stored is {stored!r}", turn.id)


def no_attempt_is_spent_by_a_worker(evidence: Evidence) -> Iterator[Finding]:
    """The budget pays for what the provider, or the wire to it, did wrong; not for the workers that died."""
    attempts, calls = (
        _of_turn(evidence.attempts),
        _by(evidence.calls, lambda call: (call.turn_id, call.step, call.attempt)),
    )
    for turn in evidence.turns:
        tried = [one for one in attempts[turn.id] if one.step == turn.step]
        retried = sum(one.outcome == AttemptOutcome.RETRIED for one in tried)
        if turn.spent != retried:
            yield Finding(Complaint.BUDGET, f"{turn.spent} attempts spent, {retried} retried", turn.id)
        for one in attempts[turn.id]:
            kinds = {call.kind for call in calls[turn.id, one.step, one.number]}
            if one.outcome == AttemptOutcome.RETRIED and kinds <= HARMLESS and not _was_hindered(one, evidence):
                yield Finding(Complaint.BUDGET, f"step {one.step}, attempt {one.number} had no reason", turn.id)


def _was_hindered(attempt: Attempt, evidence: Evidence) -> bool:
    """Tell whether the wire to the provider was cut during the attempt, or its worker was stopped."""
    end = attempt.finished_at or attempt.started_at
    pid = evidence.pids.get(attempt.worker_id)
    return any(
        incident.prank is Prank.CUT_PROVIDER or (incident.prank is Prank.STOP and incident.strikes(pid))
        for incident in evidence.incidents
        if incident.overlaps(attempt.started_at, end)
    )


def background_responses_are_generated_once(evidence: Evidence) -> Iterator[Finding]:
    """A worker that dies costs no second generation, unless it died before the first was written down."""
    attempts = _by(evidence.attempts, lambda one: (one.turn_id, one.step, one.number))
    calls = _of_turn(evidence.calls)
    for turn in evidence.turns:
        if not evidence.planned[turn.idempotency_key].background:
            continue
        generated = sorted((one for one in calls[turn.id] if one.generated), key=_arrival)
        for call in generated[:-1]:
            if not _may_be_repeated(call, attempts, evidence):
                detail = f"step {call.step}, attempt {call.attempt} was generated and not used"
                yield Finding(Complaint.GENERATIONS, detail, turn.id)


def _may_be_repeated(
    call: Call, attempts: Mapping[tuple[UUID, int, int], list[Attempt]], evidence: Evidence
) -> bool:
    failed = any(
        one.outcome in {AttemptOutcome.RETRIED, AttemptOutcome.FAILED}
        for one in attempts[call.turn_id, call.step, call.attempt]
    )
    end = call.arrived_at + MOMENT
    return failed or any(incident.overlaps(call.arrived_at - MOMENT, end) for incident in evidence.incidents)


def _arrival(call: Call) -> datetime:
    return call.arrived_at


def nobody_waits_too_long(evidence: Evidence) -> Iterator[Finding]:
    """A due turn is claimed, and an orphaned one taken over, within the lease's time and some seconds."""
    for wait in waits(evidence):
        if wait.excess > BOUND:
            detail = f"{wait.what} took {wait.extra.total_seconds():.1f} s from {wait.due:%H:%M:%S.%f}"
            yield Finding(Complaint.WAIT, detail, wait.turn_id)


def workers_end_when_they_are_told_to(evidence: Evidence) -> Iterator[Finding]:
    """No worker ends by itself, unless it came up while its servers were away; those told to leave do so well."""
    for departure in evidence.departures:
        first = departure.started_at + STARTS_WITHIN
        is_excused = departure.at < first and any(
            incident.prank in OUTAGES and incident.overlaps(departure.started_at, departure.at)
            for incident in evidence.incidents
        )
        if not is_excused:
            yield Finding(Complaint.WORKER, f"worker {departure.pid} {departure.how}; see {departure.log}")


def nobody_is_troubled(evidence: Evidence) -> Iterator[Finding]:
    """Users and readers meet nothing but a database that is away."""
    for trouble in evidence.troubles:
        yield Finding(Complaint.TROUBLE, trouble)


CHECKS: tuple[Check, ...] = (
    every_turn_is_stored_once_and_has_ended,
    a_turn_ends_as_it_was_meant_to,
    each_step_has_one_answer,
    each_answer_is_what_the_provider_said,
    turns_of_a_chat_run_in_order,
    no_tool_runs_twice_that_must_not,
    each_call_of_a_tool_has_one_result,
    readers_are_left_with_what_is_stored,
    no_attempt_is_spent_by_a_worker,
    background_responses_are_generated_once,
    nobody_waits_too_long,
    workers_end_when_they_are_told_to,
    nobody_is_troubled,
)


Row: TypeAlias = Attempt | Said | ToolRun | Call
RowT = TypeVar("RowT", Attempt, Said, ToolRun, Call)


def _of_turn(rows: Iterable[RowT]) -> "defaultdict[UUID, list[RowT]]":
    return _by(rows, lambda row: row.turn_id)


def _by(rows: Iterable[ItemT], key: Callable[[ItemT], KeyT]) -> "defaultdict[KeyT, list[ItemT]]":
    """Group *rows* by a key, in their order."""
    groups: defaultdict[KeyT, list[ItemT]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _repeats(items: Iterable[object]) -> bool:
    return any(count > 1 for count in Counter(items).values())
