"""The commands of producers: enqueue, edit, follow, show, cancel, retry, erase."""

import json
import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from turnkeeper.client import Turnkeeper
from turnkeeper.events import Event, FinalEvent, TurnCancelled, TurnCompleted, TurnFailed
from turnkeeper.exceptions import BrokerUnavailable, InvalidRequest
from turnkeeper.settings import address_of
from turnkeeper.states import OnBusy
from turnkeeper.terminal import TurnScreen
from turnkeeper.turns import Enqueued
from turnkeeper.views import AttemptView, TurnView
from turnkeeper_worker.config import ProviderConfig, Settings

EXIT_FAILED = 3
EXIT_CANCELLED = 4
MAX_RESULT_CHARS = 60
"""How much of a tool's result `show` prints."""

ChatId = Annotated[str, typer.Argument(metavar="CHAT", help="The id that `show` prints.")]
TurnId = Annotated[str, typer.Argument(metavar="TURN", help="The id that `enqueue` printed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def enqueue(
    text: Annotated[str, typer.Argument(help="What the user says; `-` reads it from standard input.")],
    *,
    chat: Annotated[str | None, typer.Option(help="The chat to continue; without it a new one starts.")] = None,
    provider: Annotated[str | None, typer.Option(help="One of `turnkeeper providers`.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's name of a model.")] = None,
    instructions: Annotated[str | None, typer.Option(help="The system prompt of a new chat.")] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="A tool of the workers that the model may call; may be repeated.")
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROVIDER[/MODEL]", help="Who answers where the model cannot; may be repeated, in order."
        ),
    ] = None,
    background: Annotated[
        bool | None, typer.Option(help="Whether the provider goes on when a worker dies.", show_default=False)
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Whose turn it is; owners are served in turn.")] = None,
    priority: Annotated[int, typer.Option(help="Of an owner's waiting turns, the highest runs first.")] = 0,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key is the same turn.")] = None,
    on_busy: Annotated[
        OnBusy, typer.Option(help="What to do when the chat has an unfinished turn.")
    ] = OnBusy.QUEUE,
    as_json: AsJson = False,
) -> int:
    """Store a turn, tell the workers, and print its id."""
    settings = Settings.load()
    provider, model = _choose(settings, chat, provider, model)
    fallbacks = _read_fallbacks(settings, fallback)
    with keeper_of(settings) as keeper:
        enqueued = keeper.enqueue(
            chat,
            _read(text),
            provider=provider,
            model=model,
            instructions=instructions,
            tools=tuple(tool) if tool else None,
            fallbacks=fallbacks,
            background=background,
            owner=owner,
            priority=priority,
            idempotency_key=idempotency_key,
            on_busy=on_busy,
        )
    _tell(settings, enqueued, as_json=as_json)
    return 0


def edit(
    turn: TurnId,
    text: Annotated[str, typer.Argument(help="What the user says instead; `-` reads it from standard input.")],
    *,
    provider: Annotated[str | None, typer.Option(help="One of `turnkeeper providers`.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's name of a model.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key is the same turn.")] = None,
    as_json: AsJson = False,
) -> int:
    """Replace a turn's message, take back whatever came after it, and print the id of the new turn."""
    settings = Settings.load()
    if provider is not None:
        provider, model = _choose(settings, None, provider, model)
    with keeper_of(settings) as keeper:
        edited = keeper.edit(turn, _read(text), provider=provider, model=model, idempotency_key=idempotency_key)
    _tell(settings, edited, as_json=as_json)
    return 0


def follow(
    turn: TurnId,
    *,
    after: Annotated[str, typer.Option(help="The `id` of the last event seen, to resume behind it.")] = "",
    as_json: AsJson = False,
) -> int:
    """Show a turn as it happens, until it ends: exit 0 completed, 3 failed, 4 cancelled."""
    with keeper_of(Settings.load()) as keeper:
        events = keeper.follow(turn, after=after)
        if not as_json:
            return _exit_code(TurnScreen(Console(highlight=False)).show(events))
        final: FinalEvent | None = None
        for event in events:
            typer.echo(event.model_dump_json(exclude_none=True))
            final = event if isinstance(event, FinalEvent) else None
        return _exit_code(final)


def show(turn: TurnId, *, as_json: AsJson = False) -> int:
    """Tell everything that is stored about a turn."""
    with keeper_of(Settings.load()) as keeper:
        view = keeper.show(turn)
    if as_json:
        typer.echo(view.model_dump_json())
    else:
        _print_view(Console(highlight=False), view)
    return 0


def cancel(turn: TurnId, *, as_json: AsJson = False) -> int:
    """Cancel a turn; a running one is stopped by its worker, and keeps what had been said."""
    with keeper_of(Settings.load()) as keeper:
        cancelled = keeper.cancel(turn)
    if as_json:
        typer.echo(json.dumps({"turn_id": str(cancelled.id), "state": cancelled.state}))
    elif cancelled.changed:
        typer.echo("cancelled")
    elif cancelled.state.is_final:
        typer.echo(f"already {cancelled.state}")
    else:
        typer.echo("asked its worker to stop")
    return 0


def retry(turn: TurnId, *, as_json: AsJson = False) -> int:
    """Skip a turn's wait, or answer the message of a failed turn in a new one; print the turn's id."""
    settings = Settings.load()
    with keeper_of(settings) as keeper:
        retried = keeper.retry(turn)
    _tell(settings, retried, as_json=as_json)
    return 0


def erase(chat: ChatId, *, as_json: AsJson = False) -> int:
    """Delete a chat with its turns, messages and live events, for good; what runs is stopped."""
    with keeper_of(Settings.load()) as keeper:
        erased = keeper.erase(chat)
    told = {"chat_id": str(erased.chat_id), "turns": len(erased.turns), "stopped": len(erased.running)}
    typer.echo(json.dumps(told) if as_json else f"erased, with {told['turns']} turns")
    return 0


COMMANDS = (enqueue, edit, follow, show, cancel, retry, erase)


def _read(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _tell(settings: Settings, enqueued: Enqueued, *, as_json: bool) -> None:
    """Print the ids of a turn that is due.  Raises BrokerUnavailable where nobody could be told of it."""
    ids = {"turn_id": str(enqueued.id), "chat_id": str(enqueued.chat_id), "is_new": enqueued.is_new}
    typer.echo(json.dumps(ids) if as_json else str(enqueued.id))
    if enqueued.is_due and not (enqueued.is_rung or enqueued.is_held):
        raise BrokerUnavailable(
            address_of(settings.broker),
            f"turn {enqueued.id} is stored and runs when the broker is back, so do not ask for it again",
        )


def keeper_of(settings: Settings) -> Turnkeeper:
    """Return the client that the settings describe."""
    return Turnkeeper(
        database_url=settings.database_url.get_secret_value(),
        redis_url=settings.redis_url.get_secret_value(),
        broker_url=settings.broker,
        queue=settings.queue,
        default_provider=settings.default_provider,
    )


def _choose(
    settings: Settings, chat: str | None, provider: str | None, model: str | None
) -> tuple[str | None, str | None]:
    """Check the provider and the model before anything is stored.  Raises InvalidRequest."""
    configured = settings.all_providers(os.environ)
    if provider is None and chat is not None:
        return None, model
    provider = provider or settings.default_provider or _only(configured)
    _check_configured(provider, configured)
    if model is None and configured[provider].model is None and chat is None:
        raise InvalidRequest(f"provider {provider} has no model of its own; give --model")
    return provider, model


def _read_fallbacks(settings: Settings, given: list[str] | None) -> tuple[str, ...] | None:
    """Check that their providers exist before anything is stored.  Raises InvalidRequest."""
    configured = settings.all_providers(os.environ) if given else {}
    for one in given or ():
        _check_configured(one.partition("/")[0], configured)
    return tuple(given) if given else None


def _check_configured(provider: str, configured: dict[str, ProviderConfig]) -> None:
    if provider not in configured:
        known = ", ".join(sorted(configured)) or "none"
        raise InvalidRequest(
            f"no provider is called {provider}; configured: {known}; add [providers.{provider}] to turnkeeper.toml"
        )


def _only(configured: dict[str, ProviderConfig]) -> str:
    if len(configured) == 1:
        return next(iter(configured))
    known = ", ".join(sorted(configured)) or "none is configured, see `turnkeeper providers`"
    raise InvalidRequest(f"say which provider with --provider ({known}), or set TURNKEEPER_DEFAULT_PROVIDER")


def _exit_code(final: Event | None) -> int:
    match final:
        case TurnCompleted():
            return 0
        case TurnFailed():
            return EXIT_FAILED
        case TurnCancelled():
            return EXIT_CANCELLED
        case _:
            return 1


def _print_view(console: Console, view: TurnView) -> None:
    console.print(f"turn {view.id}  [bold]{view.state}[/]  {_who(view)}")
    console.print(f"chat {view.chat_id}, turn {view.seq}", style="dim")
    if (back_at := view.parked_until) is not None:
        console.print(
            f"waits for its provider, which must rest or is asked too often; back at {back_at:%H:%M:%S %Z}"
        )
    if view.superseded_by:
        console.print(f"superseded by turn {view.superseded_by}")
    if view.attempts:
        console.print(_attempts_table(view))
    if view.tool_runs:
        console.print(_tools_table(view))
    if view.error:
        console.print(Text(view.error.message, style="red"))
        if view.error.detail:
            console.print(Text(view.error.detail, style="dim"))
    if view.text:
        console.print(Text(view.text))


def _who(view: TurnView) -> str:
    """Name the model that answers, and the one that was asked at first."""
    first = view.first_choice
    instead = f", instead of {first['provider']} {first['model'] or ''}".rstrip() if first else ""
    return escape(f"{view.provider} {view.model or ''}".rstrip() + instead)


def _attempts_table(view: TurnView) -> Table:
    has_fallen_back = view.first_choice is not None
    who = ("model",) if has_fallen_back else ()
    table = Table("step", "attempt", *who, "outcome", "kind", "status", "wait", "history", "why", box=None)
    for attempt in view.attempts:
        model = (escape(f"{attempt.provider} {attempt.model or ''}"),) if has_fallen_back else ()
        table.add_row(
            str(attempt.step),
            str(attempt.number),
            *model,
            attempt.outcome,
            attempt.kind or "",
            str(attempt.status_code or ""),
            f"{attempt.delay_ms / 1000:.1f} s" if attempt.delay_ms is not None else "",
            _history(attempt),
            _why(attempt),
        )
    return table


def _history(attempt: AttemptView) -> str:
    """Say what was sent of the chat: what is new, all of it, or nothing where a response went on by itself."""
    if attempt.resumed:
        return "resumed"
    return {True: "chained", False: "full", None: ""}[attempt.chained]


def _tools_table(view: TurnView) -> Table:
    table = Table("step", "tool", "state", "took", "result", box=None)
    for run in view.tool_runs:
        took = f"{(run.finished_at - run.started_at).total_seconds():.1f} s" if run.finished_at else ""
        result = run.result.output if run.result else ""
        style = "red" if run.result and run.result.is_error else ""
        table.add_row(str(run.step), run.name, run.state, took, Text(_one_line(result), style=style))
    return table


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_RESULT_CHARS else f"{line[: MAX_RESULT_CHARS - 1]}…"


def _why(attempt: AttemptView) -> str:
    """Name the rule that classified the failure, and the budget that ended the turn or its model, if one did."""
    facts = attempt.facts or {}
    reason = facts.get("gave_up") or facts.get("fell_back")
    ended_by = f"; gave up: {reason}" if reason not in {None, "terminal"} else ""
    return f"{facts.get('rule', '')}{ended_by}"
