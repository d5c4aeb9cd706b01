"""How chains have held lately, for each credential: what breaks again and again is left alone for a while."""

from datetime import timedelta

from sqlalchemy import Connection, bindparam, case, false, func, select, update
from sqlalchemy.dialects.postgresql import insert

from turnkeeper.tables import chain_health
from turnkeeper_worker.chain import Credential, Health

_is_resting = func.coalesce(chain_health.c.rests_until > func.now(), false()).label("is_resting")
_HEALTH = select(chain_health.c.breaks, _is_resting).where(chain_health.c.credential == bindparam("seal"))


def health_of(connection: Connection, credential: Credential) -> Health:
    """Tell how chains have held lately."""
    found = connection.execute(_HEALTH, {"seal": credential.seal}).first()
    return Health() if found is None else Health(found.breaks, found.is_resting)


def held(connection: Connection, credential: Credential) -> None:
    """Note that a chain held, after some that broke."""
    connection.execute(
        update(chain_health).where(chain_health.c.credential == credential.seal).values(breaks=0, rests_until=None)
    )


def broke(connection: Connection, credential: Credential, *, tolerated: int, rest: timedelta) -> None:
    """Count a broken chain; with *tolerated* of them in a row, chaining rests for this credential."""
    breaks = chain_health.c.breaks + 1
    until = case((breaks >= tolerated, func.now() + rest), else_=chain_health.c.rests_until)
    connection.execute(
        insert(chain_health)
        .values(
            credential=credential.seal,
            provider=credential.provider,
            breaks=1,
            rests_until=func.now() + rest if tolerated == 1 else None,
        )
        .on_conflict_do_update(
            index_elements=["credential"],
            set_={"breaks": breaks, "rests_until": until, "broken_at": func.now()},
        )
    )
