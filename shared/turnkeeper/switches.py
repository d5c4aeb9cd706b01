"""Providers that an operator has switched off.

A row stands for a provider that is off, and for no other. Workers read the rows every second or so; what they call
already goes on, and what they would call next fails as `provider_disabled`, or falls back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Text, delete, func, select, union
from sqlalchemy.dialects.postgresql import insert

from turnkeeper.exceptions import UnknownProvider
from turnkeeper.tables import provider_switches, workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Disabled:
    """A provider that is switched off."""

    provider: str
    reason: str
    """In the operator's words, for operators; followers of a turn are not told."""
    disabled_at: datetime


def disable(connection: Connection, provider: str, reason: str = "", *, known: Iterable[str] = ()) -> Disabled:
    """Switch a provider off; one that is off already stays off since then, with the new reason.

    Args:
        connection: An open transaction.
        provider: The name by which workers are configured for it.
        reason: For whoever looks at it later.
        known: Names that exist besides those that workers have announced.

    Raises UnknownProvider.
    """
    _check(connection, provider, known)
    switched = (
        insert(provider_switches)
        .values(provider=provider, reason=reason)
        .on_conflict_do_update(index_elements=["provider"], set_={"reason": reason})
        .returning(provider_switches)
    )
    return Disabled(**connection.execute(switched).mappings().one())


def enable(connection: Connection, provider: str, *, known: Iterable[str] = ()) -> bool:
    """Switch a provider on again; return whether it was off.  Raises UnknownProvider."""
    _check(connection, provider, known)
    this = provider_switches.c.provider == provider
    return connection.execute(delete(provider_switches).where(this)).rowcount > 0


def disabled(connection: Connection) -> dict[str, Disabled]:
    """Return the providers that are off, by name."""
    rows = connection.execute(select(provider_switches)).mappings()
    return {row["provider"]: Disabled(**row) for row in rows}


def _check(connection: Connection, provider: str, known: Iterable[str]) -> None:
    announced = func.jsonb_array_elements_text(workers.c.providers, type_=Text)
    named = connection.scalars(union(select(announced), select(provider_switches.c.provider)))
    existing = {*named, *known}
    if provider not in existing:
        raise UnknownProvider(provider, tuple(sorted(existing)))
