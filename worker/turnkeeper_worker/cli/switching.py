"""`turnkeeper providers`: which are configured and usable, and the switch that an operator has for each."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from turnkeeper.exceptions import DatabaseUnavailable
from turnkeeper.switches import Disabled
from turnkeeper_worker.cli.turns import AsJson, keeper_of
from turnkeeper_worker.config import ProviderConfig, Settings

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of a provider, as it is configured.")]


def providers(context: typer.Context, *, as_json: AsJson = False) -> int:
    """List the configured providers, whether they can be called, and which are switched off."""
    if context.invoked_subcommand is not None:
        return 0
    settings = Settings.load()
    switched_off = _switched_off(settings)
    configured = settings.all_providers(os.environ)
    rows = [_Row.of(name, config, switched_off.get(name)) for name, config in sorted(configured.items())]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    elif not rows:
        typer.echo("none; set OPENAI_API_KEY, or add [providers.NAME] to turnkeeper.toml")
    else:
        Console(highlight=False).print(_table(rows))
    return 0


def disable(
    name: Name,
    *,
    reason: Annotated[str, typer.Option(help="For whoever looks at it later; users are not told.")] = "",
) -> int:
    """Switch a provider off for all workers, within seconds; calls that run go on."""
    settings = Settings.load()
    with keeper_of(settings) as keeper:
        switched = keeper.disable_provider(name, reason, known=settings.all_providers(os.environ))
    typer.echo(f"{name} is switched off since {_moment(switched)}")
    return 0


def enable(name: Name) -> int:
    """Switch a provider on again."""
    settings = Settings.load()
    with keeper_of(settings) as keeper:
        was_off = keeper.enable_provider(name, known=settings.all_providers(os.environ))
    typer.echo(f"{name} is switched on" if was_off else f"{name} was not switched off")
    return 0


def commands() -> typer.Typer:
    """Return the command and what stands below it."""
    group = typer.Typer(callback=providers, invoke_without_command=True)
    group.command()(disable)
    group.command()(enable)
    return group


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    api: str
    base_url: str
    model: str | None
    store: bool
    status: str
    disabled_since: str | None
    reason: str | None

    @classmethod
    def of(cls, name: str, config: ProviderConfig, off: Disabled | None) -> "_Row":
        return cls(
            name=name,
            api=config.api,
            base_url=config.base_url,
            model=config.model,
            store=config.store,
            status="switched off" if off else _status(config),
            disabled_since=_moment(off) if off else None,
            reason=off.reason if off else None,
        )

    @property
    def told(self) -> str:
        """The status in a sentence for people."""
        if self.disabled_since is None:
            return self.status
        return f"off since {self.disabled_since}" + (f": {self.reason}" if self.reason else "")


def _status(config: ProviderConfig) -> str:
    if config.api_key_env is not None and config.api_key(os.environ) is None:
        return f"{config.api_key_env} is not set"
    return "ready"


def _switched_off(settings: Settings) -> dict[str, Disabled]:
    """Return the switches; without a database the configuration is worth listing all the same."""
    try:
        with keeper_of(settings) as keeper:
            return keeper.disabled_providers()
    except DatabaseUnavailable as error:
        typer.echo(f"turnkeeper: which providers are switched off is not known: {error}", err=True)
        return {}


def _moment(off: Disabled) -> str:
    return off.disabled_at.isoformat(timespec="seconds")


def _table(rows: list[_Row]) -> Table:
    table = Table("name", "api", "model", "status", box=None)
    for row in rows:
        table.add_row(row.name, row.api, row.model or "", row.told)
    return table
