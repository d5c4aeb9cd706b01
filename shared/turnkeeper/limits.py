"""Limits of usage, per owner and calendar period, and the counters that they are held against.

A turn is counted when it is enqueued, by one guarded upsert for each limit of its owner: the row lock decides who
gets the last one, and a transaction that is rolled back has counted nothing. Tokens are counted in the transaction
that ends an attempt, into the period in which that happens. Nothing is counted of owners without a limit, and no
statement is spent on finding that out: what holds for an owner is read along with the chat, and noted on the turn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    Text,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by, distinct_on, insert

from turnkeeper.exceptions import InvalidRequest, UsageLimitExceeded
from turnkeeper.states import UsagePeriod
from turnkeeper.tables import usage_limits, usage_periods

EVERYBODY = "*"
"""As an owner: all who have no limit of their own for the period."""
MAX_OWNER_CHARS = 200
HIGHEST = 2**62
"""Stands for no limit where a number is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What an owner may use in a period; with neither number, no limit of everybody's holds either."""

    owner: str
    period: UsagePeriod
    max_turns: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an owner has used in the present period, and may use."""

    period: UsagePeriod
    starts_at: datetime
    resets_at: datetime
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    max_turns: int | None = None
    max_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """Those that were sent and those that came back."""
        return self.input_tokens + self.output_tokens


def next_period(period: UsagePeriod, starts_at: datetime) -> datetime:
    """Return when the period after the one that starts at *starts_at* starts.

    >>> next_period(UsagePeriod.MONTH, datetime(2026, 12, 1, tzinfo=UTC)).isoformat()
    '2027-01-01T00:00:00+00:00'
    """
    start = starts_at.astimezone(UTC)
    match period:
        case UsagePeriod.HOUR:
            return start + timedelta(hours=1)
        case UsagePeriod.DAY:
            return start + timedelta(days=1)
        case UsagePeriod.MONTH:
            return (start + timedelta(days=31)).replace(day=1)


def _start_of(period: Any) -> Any:
    return func.date_trunc(period, func.now(), literal_column("'UTC'"))


_own = usage_limits.c.owner
_of_owner = (
    select(usage_limits.c.period, usage_limits.c.max_turns, usage_limits.c.max_tokens)
    .where(_own.in_([bindparam("limited_owner", type_=Text), literal_column(f"'{EVERYBODY}'")]))
    .ext(distinct_on(usage_limits.c.period))
    .order_by(usage_limits.c.period, _own == literal_column(f"'{EVERYBODY}'"))
    .subquery("of_owner")
)
_HOLDS = or_(_of_owner.c.max_turns.is_not(None), _of_owner.c.max_tokens.is_not(None))
LIMITS = (
    select(
        func.jsonb_agg(
            aggregate_order_by(
                func.jsonb_build_array(_of_owner.c.period, _of_owner.c.max_turns, _of_owner.c.max_tokens),
                _of_owner.c.period,
            )
        )
    )
    .where(_HOLDS)
    .scalar_subquery()
    .label("limits")
)
"""The limits that hold for the owner who is bound to `limited_owner`, as a column of another statement.

Each is a list of period, turns and tokens; without any, the column is NULL.
"""


def limits_of(connection: Connection, owner: str) -> list[Any] | None:
    """Return what `LIMITS` reads."""
    found: list[Any] | None = connection.scalar(select(LIMITS), {"limited_owner": owner})
    return found


_max_turns, _max_tokens = bindparam("max_turns", type_=BigInteger), bindparam("max_tokens", type_=BigInteger)
_period = bindparam("of_period", type_=Text)
_tokens = usage_periods.c.input_tokens + usage_periods.c.output_tokens
_COUNT_TURN = (
    insert(usage_periods)
    .from_select(
        ["owner", "period", "starts_at", "turns"],
        select(bindparam("of_owner", type_=Text), _period, _start_of(_period), literal(1)).where(
            _max_turns > 0, _max_tokens > 0
        ),
    )
    .on_conflict_do_update(
        index_elements=["owner", "period", "starts_at"],
        set_={"turns": usage_periods.c.turns + 1},
        where=(usage_periods.c.turns < _max_turns) & (_tokens < _max_tokens),
    )
    .returning(usage_periods.c.turns)
)


def admit(connection: Connection, owner: str, limits: Iterable[Any] | None) -> None:
    """Count a turn against each of its owner's limits.  Raises UsageLimitExceeded.

    The limits come in the order of their periods: whoever locks several counters does so in the same order.
    """
    for period, max_turns, max_tokens in limits or ():
        facts = {
            "of_owner": owner,
            "of_period": period,
            "max_turns": HIGHEST if max_turns is None else max_turns,
            "max_tokens": HIGHEST if max_tokens is None else max_tokens,
        }
        if connection.execute(_COUNT_TURN, facts).first() is not None:
            continue
        # None where the limit was removed in this moment.
        if used := next((one for one in usage_of(connection, owner) if one.period == period), None):
            raise _exceeded(replace(used, max_turns=max_turns, max_tokens=max_tokens))


_COUNT_TOKENS = insert(usage_periods).from_select(
    ["owner", "period", "starts_at", "input_tokens", "output_tokens"],
    select(
        bindparam("limited_owner", type_=Text),
        _of_owner.c.period,
        _start_of(_of_owner.c.period),
        bindparam("input_tokens", type_=BigInteger),
        bindparam("output_tokens", type_=BigInteger),
    )
    .where(_HOLDS)
    .order_by(_of_owner.c.period),
)
_COUNT_TOKENS = _COUNT_TOKENS.on_conflict_do_update(
    index_elements=["owner", "period", "starts_at"],
    set_={
        name: usage_periods.c[name] + _COUNT_TOKENS.excluded[name] for name in ("input_tokens", "output_tokens")
    },
)


def count_tokens(connection: Connection, owner: str, usage: Mapping[str, int]) -> None:
    """Add what a call has cost to the present periods of its owner."""
    facts = {name: usage.get(name, 0) for name in ("input_tokens", "output_tokens")}
    connection.execute(_COUNT_TOKENS, facts | {"limited_owner": owner})


def find_reached(connection: Connection, owner: str) -> UsageLimitExceeded | None:
    """Return the limit of tokens that an owner has reached; of several, the one that is reset last."""
    used = usage_of(connection, owner)
    reached = [one for one in used if one.max_tokens is not None and one.tokens >= one.max_tokens]
    return _exceeded(max(reached, key=lambda one: one.resets_at)) if reached else None


_USAGE = (
    select(
        _of_owner,
        _start_of(_of_owner.c.period).label("starts_at"),
        *(
            func.coalesce(usage_periods.c[name], 0).label(name)
            for name in ("turns", "input_tokens", "output_tokens")
        ),
    )
    .select_from(
        _of_owner.outerjoin(
            usage_periods,
            (usage_periods.c.owner == bindparam("limited_owner", type_=Text))
            & (usage_periods.c.period == _of_owner.c.period)
            & (usage_periods.c.starts_at == _start_of(_of_owner.c.period)),
        )
    )
    .where(_HOLDS)
)


def usage_of(connection: Connection, owner: str) -> tuple[Usage, ...]:
    """Return what an owner has used of each limit that holds, the shortest period first."""
    used = map(_usage, connection.execute(_USAGE, {"limited_owner": owner}))
    return tuple(sorted(used, key=lambda one: one.resets_at - one.starts_at))


def _usage(row: Row[Any]) -> Usage:
    period = UsagePeriod(row.period)
    return Usage(**row._asdict() | {"period": period, "resets_at": next_period(period, row.starts_at)})


def _exceeded(used: Usage) -> UsageLimitExceeded:
    if used.max_turns is not None and used.turns >= used.max_turns:
        return UsageLimitExceeded(used.turns, used.max_turns, used.resets_at, "turns", used.period)
    return UsageLimitExceeded(used.tokens, used.max_tokens or 0, used.resets_at, "tokens", used.period)


def set_limit(
    connection: Connection,
    owner: str,
    period: UsagePeriod | str,
    *,
    max_turns: int | None = None,
    max_tokens: int | None = None,
) -> Limit:
    """Set what an owner may use in a period, in place of the limit before; turns from now on are counted.

    Args:
        connection: An open transaction.
        owner: Whom it holds for; `*` is all who have no limit of their own for the period.
        period: `hour`, `day` or `month`, by the calendar of UTC.
        max_turns: How many turns may be enqueued.
        max_tokens: With how many tokens used, sent and received, no further turn is taken.

    Without either number the owner is exempt from the limit of `*`.  Raises InvalidRequest.
    """
    limit = Limit(
        owner=_checked_owner(owner),
        period=_checked_period(period),
        max_turns=_checked_number("max_turns", max_turns, 2**31 - 1),
        max_tokens=_checked_number("max_tokens", max_tokens, HIGHEST),
    )
    numbers = {"max_turns": limit.max_turns, "max_tokens": limit.max_tokens}
    connection.execute(
        insert(usage_limits)
        .values(owner=limit.owner, period=limit.period, **numbers)
        .on_conflict_do_update(index_elements=["owner", "period"], set_=numbers)
    )
    return limit


def remove_limit(connection: Connection, owner: str, period: UsagePeriod | str) -> bool:
    """Remove a limit; return whether there was one.  Raises InvalidRequest."""
    this = (_own == _checked_owner(owner)) & (usage_limits.c.period == _checked_period(period))
    return connection.execute(delete(usage_limits).where(this)).rowcount > 0


def list_limits(connection: Connection) -> tuple[Limit, ...]:
    """Return all limits, by owner."""
    rows = connection.execute(select(usage_limits).order_by(_own, usage_limits.c.period)).mappings()
    return tuple(Limit(**(dict(row) | {"period": UsagePeriod(row["period"])})) for row in rows)


def _checked_owner(owner: str) -> str:
    if len(owner) > MAX_OWNER_CHARS or "\0" in owner:
        raise InvalidRequest(f"an owner has at most {MAX_OWNER_CHARS} characters, and no NUL among them")
    return owner


def _checked_period(period: UsagePeriod | str) -> UsagePeriod:
    try:
        return UsagePeriod(period)
    except ValueError:
        raise InvalidRequest(f"{period[:50]!r} is no period; take {', '.join(UsagePeriod)}") from None


def _checked_number(name: str, number: int | None, highest: int) -> int | None:
    if number is not None and not 0 <= number <= highest:
        raise InvalidRequest(f"{name} is {number}; take a number from 0 to {highest:,}")
    return number
