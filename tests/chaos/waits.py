"""How long turns waited for a worker, from the moment when one could have begun.  Pure."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID

from turnkeeper.states import AttemptOutcome

from .evidence import Attempt, Evidence, Turn
from .mischief import LEASE_TTL_SECONDS, OUTAGES, Incident, Prank
from .plan import LONGEST_TOOL_SECONDS

BOUND = timedelta(seconds=LEASE_TTL_SECONDS + 5)
"""The longest wait that may be added to a turn, outages apart."""
_SOONEST = timedelta(seconds=LEASE_TTL_SECONDS - 1)
"""What a lease has left at least, just before its next beat."""
_HARM = frozenset({Prank.KILL, Prank.STOP, Prank.PART_POSTGRES, Prank.CUT_POSTGRES, Prank.POSTGRES_RESTART})
"""What costs a worker its leases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One wait of one turn."""

    turn_id: UUID
    what: str
    due: datetime
    begun: datetime
    outage: timedelta
    """How much of it PostgreSQL or Redis were away for everybody."""

    @property
    def extra(self) -> timedelta:
        """How long it took."""
        return max(self.begun - self.due, timedelta(0))

    @property
    def excess(self) -> timedelta:
        """What of it nobody but the workers can be blamed for."""
        return self.extra - self.outage


def waits(evidence: Evidence) -> Iterator[Wait]:
    """Yield every wait that the rows tell of."""
    for turn_id, what, due, begun in _spans(evidence):
        yield Wait(turn_id=turn_id, what=what, due=due, begun=begun, outage=_outage(evidence, due, begun))


_Span = tuple[UUID, str, datetime, datetime]


def _spans(evidence: Evidence) -> Iterator[_Span]:
    chats: defaultdict[UUID, list[Turn]] = defaultdict(list)
    for turn in sorted(evidence.turns, key=lambda turn: turn.seq):
        chats[turn.chat_id].append(turn)
    attempts: defaultdict[UUID, list[Attempt]] = defaultdict(list)
    for attempt in evidence.attempts:
        attempts[attempt.turn_id].append(attempt)
    for chat in chats.values():
        yield from _first_claims(chat)
    for tried in attempts.values():
        for one, following in pairwise(tried):
            yield _between(evidence, one, following)


def _first_claims(chat: list[Turn]) -> Iterator[_Span]:
    """Yield the waits of a chat's turns from when they were first in line."""
    free = None
    for turn in chat:
        if turn.started_at is not None:
            yield turn.id, "the first claim", max(turn.created_at, free or turn.created_at), turn.started_at
        if turn.finished_at is not None:
            free = max(turn.finished_at, free or turn.finished_at)


def _between(evidence: Evidence, one: Attempt, following: Attempt) -> _Span:
    ended = one.finished_at or one.started_at
    match one.outcome:
        case AttemptOutcome.LOST:
            return one.turn_id, "the take-over", _lost_at(evidence, one, ended), following.started_at
        case AttemptOutcome.COMPLETED:
            harm = harm_of(evidence, one, following.started_at)
            due = max([ended, *(each.began for each in harm)]) + timedelta(seconds=LONGEST_TOOL_SECONDS)
            return one.turn_id, "the next step", due, following.started_at
        case _:
            due = ended + timedelta(milliseconds=one.delay_ms or 0)
            return one.turn_id, f"what follows {one.outcome}", due, following.started_at


def _lost_at(evidence: Evidence, attempt: Attempt, ended: datetime) -> datetime:
    """Return when an attempt's worker was struck: last of all, but so early that its lease could run out."""
    struck = [incident.began for incident in harm_of(evidence, attempt, ended)]
    in_time = [began for began in struck if ended - began > _SOONEST]
    return max(in_time, default=min(struck, default=ended))


def harm_of(evidence: Evidence, attempt: Attempt, end: datetime) -> list[Incident]:
    """Return what may have cost an attempt's worker its lease while it held the turn."""
    pid = evidence.pids.get(attempt.worker_id)
    return [
        incident
        for incident in evidence.incidents
        if incident.prank in _HARM and incident.strikes(pid) and incident.overlaps(attempt.started_at, end)
    ]


def _outage(evidence: Evidence, start: datetime, end: datetime) -> timedelta:
    """Return how much of a time PostgreSQL or Redis were away for all workers; overlaps count once."""
    away, covered = timedelta(0), start
    for incident in sorted(evidence.incidents, key=lambda one: one.began):
        if incident.prank in OUTAGES:
            begin, finish = max(incident.began, covered), min(incident.ended, end)
            away += max(finish - begin, timedelta(0))
            covered = max(covered, finish)
    return away
