"""`turnkeeper usage` and `turnkeeper limits`: what owners have used, and may use."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnkeeper.exceptions import InvalidRequest
from turnkeeper.limits import EVERYBODY, Limit, Usage
from turnkeeper.states import UsagePeriod
from turnkeeper_worker.cli.turns import AsJson, keeper_of
from turnkeeper_worker.config import Settings

Owner = Annotated[
    str, typer.Argument(metavar="OWNER", help=f"Whose it is; {EVERYBODY} is all who have none of their own.")
]
Period = Annotated[UsagePeriod, typer.Option(help="By the calendar of UTC.")]


def usage(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="As the turns name it.")],
    *,
    as_json: AsJson = False,
) -> int:
    """Tell what an owner has used in the present periods, and may use; nothing is counted without a limit."""
    with keeper_of(Settings.load()) as keeper:
        used = keeper.usage(owner)
    if as_json:
        typer.echo(_json(tuple[Usage, ...], used))
    elif not used:
        typer.echo("no limit holds, so nothing is counted; see `turnkeeper limits set --help`")
    else:
        _print(("period", "turns", "tokens", "sent", "received", "begins anew"), map(_usage_row, used))
    return 0


def limits(context: typer.Context, *, as_json: AsJson = False) -> int:
    """List the limits of usage."""
    return list_all(as_json=as_json) if context.invoked_subcommand is None else 0


def list_all(*, as_json: AsJson = False) -> int:
    """List the limits of usage."""
    with keeper_of(Settings.load()) as keeper:
        found = keeper.limits()
    if as_json:
        typer.echo(_json(tuple[Limit, ...], found))
    elif not found:
        typer.echo("none; see `turnkeeper limits set --help`")
    else:
        _print(("owner", "period", "turns", "tokens"), map(_limit_row, found))
    return 0


def set_one(
    owner: Owner,
    *,
    period: Period,
    turns: Annotated[int | None, typer.Option(min=0, help="How many turns may be enqueued.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=0, help="With so many tokens used, no further turn is taken.")
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help=f"Exempt the owner from the limit of {EVERYBODY}.")
    ] = False,
) -> int:
    """Set the limit of an owner for a period, in place of the one before."""
    if unlimited == (turns is not None or tokens is not None):
        raise InvalidRequest("say how much with --turns, --tokens or both, or --unlimited alone")
    with keeper_of(Settings.load()) as keeper:
        keeper.set_limit(owner, period, max_turns=turns, max_tokens=tokens)
    typer.echo("set; turns that are enqueued from now on are counted")
    return 0


def remove(owner: Owner, *, period: Period) -> int:
    """Remove the limit of an owner for a period."""
    with keeper_of(Settings.load()) as keeper:
        there_was = keeper.remove_limit(owner, period)
    typer.echo("removed" if there_was else "there was none")
    return 0


def commands() -> typer.Typer:
    """Return the command and what stands below it."""
    group = typer.Typer(callback=limits, invoke_without_command=True)
    group.command("list")(list_all)
    group.command("set")(set_one)
    group.command()(remove)
    return group


def _usage_row(used: Usage) -> tuple[str, ...]:
    return (
        used.period,
        _of(used.turns, used.max_turns),
        _of(used.tokens, used.max_tokens),
        f"{used.input_tokens:,}",
        f"{used.output_tokens:,}",
        f"{used.resets_at:%Y-%m-%d %H:%M} UTC",
    )


def _limit_row(limit: Limit) -> tuple[str, ...]:
    if limit.max_turns is None and limit.max_tokens is None:
        return limit.owner, limit.period, "unlimited", "unlimited"
    return limit.owner, limit.period, _number(limit.max_turns), _number(limit.max_tokens)


def _of(used: int, most: int | None) -> str:
    return f"{used:,}" if most is None else f"{used:,} of {most:,}"


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _print(head: Sequence[str], rows: Any) -> None:
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _json(kind: Any, found: Any) -> str:
    return TypeAdapter(kind).dump_json(found).decode()
