"""`turnkeeper cooldowns`: what rests now or is called at a measured pace, and how to forget it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from turnkeeper.database import explaining_database_errors
from turnkeeper.exceptions import TurnkeeperError
from turnkeeper.keys import COOLDOWNS
from turnkeeper.settings import address_of
from turnkeeper_worker import upkeep
from turnkeeper_worker.cli.turns import AsJson
from turnkeeper_worker.config import Settings

TIMEOUT_SECONDS = 5


class RedisUnavailable(TurnkeeperError):
    """Redis, which holds the cooldowns, does not answer."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(address, why)
        self.address = address
        self.why = why

    def __str__(self) -> str:
        return f"Redis at {self.address} does not answer: {self.why}; without it each worker rests by itself"


def cooldowns(context: typer.Context, *, as_json: AsJson = False) -> int:
    """List the keys and models that rest or are called at a pace, and until when."""
    if context.invoked_subcommand is not None:
        return 0
    rows = list(_ask(Settings.load(), _rows))
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo("nothing rests")
    else:
        Console(highlight=False).print(_table(rows))
    return 0


def clear(provider: Annotated[str | None, typer.Argument(help="Only what rests of this provider.")] = None) -> int:
    """Forget what rests, so that it is called again at once; turns that wait for it come back."""
    settings = Settings.load()
    forgotten = _ask(settings, lambda redis: _forget(redis, provider))
    engine = create_engine(settings.database, poolclass=NullPool)
    with explaining_database_errors(settings.database), engine.begin() as connection:
        woken = upkeep.unpark(connection, provider)
    typer.echo(f"forgot {forgotten}; {woken} turns come back")
    return 0


def commands() -> typer.Typer:
    """Return the command and what stands below it."""
    group = typer.Typer(callback=cooldowns, invoke_without_command=True)
    group.command()(clear)
    return group


def _ask(settings: Settings, question: Any) -> Any:
    url = settings.redis_url.get_secret_value()
    try:
        with Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, decode_responses=True) as redis:
            return question(redis)
    except (RedisError, OSError) as error:
        raise RedisUnavailable(address_of(url), str(error)) from None


def _rows(redis: Redis) -> list[dict[str, Any]]:
    return [row for name, label in _gates(redis) if (row := _row(redis, name, json.loads(label))) is not None]


def _gates(redis: Redis) -> Iterator[tuple[str, str]]:
    found: Any = redis.hgetall(COOLDOWNS)
    yield from sorted(found.items(), key=lambda gate: gate[1])


def _row(redis: Redis, name: str, label: dict[str, Any]) -> dict[str, Any] | None:
    """Describe a gate; None where nothing keeps anybody from calling."""
    gate: Any = redis.hgetall(name)
    now = datetime.now(UTC)
    rests_until = datetime.fromtimestamp(float(gate.get("rest", 0)) / 1000, UTC)
    is_resting = rests_until > now
    waiting: Any = redis.zcard(name.replace(f"{COOLDOWNS}:key:", f"{COOLDOWNS}:slots:"))
    is_paced = float(gate.get("full", 0)) / 1000 > now.timestamp() and float(gate.get("interval", 0)) > 0
    if not (is_resting or (is_paced and waiting)):
        return None
    return {
        "provider": label["provider"],
        "model": label["model"],
        "whose": "every key" if label.get("every_key") else "one key",
        "kind": gate.get("why") if is_resting else None,
        "rests_until": rests_until.isoformat(timespec="milliseconds") if is_resting else None,
        "calls_per_second": round(1000 / float(gate["interval"]), 2) if is_paced else None,
        "waiting": waiting,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("provider", "model", "whose", "why", "rests until", "calls per second", "waiting", box=None)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table


def _forget(redis: Redis, provider: str | None) -> int:
    """Delete gates; return how many."""
    names = [name for name, label in _gates(redis) if provider in {None, json.loads(label)["provider"]}]
    for name in names:
        redis.delete(name, name.replace(f"{COOLDOWNS}:key:", f"{COOLDOWNS}:slots:"))
        redis.hdel(COOLDOWNS, name)
    return len(names)
