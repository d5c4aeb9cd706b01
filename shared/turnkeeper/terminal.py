"""How a turn looks in a terminal while it happens: the words, the countdown, the rollback, the end."""

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from turnkeeper.events import (
    Event,
    FinalEvent,
    Transcript,
    TurnCancelled,
    TurnCommitted,
    TurnCompleted,
    TurnFailed,
    TurnPart,
    TurnRetry,
    TurnStarted,
)

_REASONS = {
    "heal": "The chain is broken at the provider; the full history is replayed.",
    "fall_back": "The model cannot answer.",
    "handed_back": "The worker shuts down; another takes over.",
    "rescued": "The worker is gone; another takes over.",
    "retry": "The attempt failed.",
    "cooldown": "The provider must rest.",
}


class TurnScreen:
    """Shows the events of one turn: redrawn in place on a terminal, line by line anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._transcript = Transcript()
        self._waiting: TurnRetry | None = None
        self._written = ""
        """What the current line of a log holds already."""

    def show(self, events: Iterable[Event]) -> FinalEvent | None:
        """Show *events* as they come; return the final one, or None where they end without."""
        if not self._console.is_terminal:
            return self._read(events)
        with Live(get_renderable=self._now, console=self._console, refresh_per_second=10, transient=True):
            final = self._read(events)
        self._console.print(self._words())
        return final

    def _read(self, events: Iterable[Event]) -> FinalEvent | None:
        for event in events:
            self._note(event)
            self._transcript.feed([event])
            self._waiting = event if isinstance(event, TurnRetry) else None
            if isinstance(event, FinalEvent):
                return event
        return None

    def _note(self, event: Event) -> None:
        """Print what stays on the screen."""
        match event:
            case TurnStarted():
                self._say(f"attempt {event.attempt}: {_calling(event)}", "dim")
            case TurnRetry():
                self._say(self._retry_line(event), "yellow")
            case TurnFailed(error=error):
                self._say(f"failed: {error.message}", "red")
                if error.detail:
                    self._say(f"        {error.detail}", "dim")
            case TurnCancelled():
                self._say("cancelled", "yellow")
            case TurnPart(kind="text", text=text):
                self._write(text)
            case TurnCommitted(messages=messages):
                self._write("".join(message.text for message in messages).removeprefix(self._written))
                self._end_line()
            case TurnPart() | TurnCompleted():
                pass

    def _write(self, text: str) -> None:
        """Add to the current line of a log; a terminal redraws the words instead."""
        if not self._console.is_terminal:
            self._written += text
            self._console.file.write(text)
            self._console.file.flush()

    def _end_line(self) -> None:
        if self._written:
            self._written = ""
            self._console.file.write("\n")

    def _retry_line(self, event: TurnRetry) -> str:
        said = len(self._transcript.text)
        void = f" {said} characters are void." if said else ""
        tells = event.error is not None and event.reason in {"retry", "fall_back", "cooldown"}
        why = event.error.message if event.error and tells else _REASONS[event.reason]
        what = "The turn waits for its provider, about" if event.reason == "cooldown" else "Next attempt in"
        wait = f" {what} {event.delay_ms / 1000:.1f} s." if event.delay_ms else ""
        instead = f" Falling back on {event.provider} {event.model or ''}".rstrip() + "." if event.provider else ""
        return f"{why}{void}{wait}{instead}"

    def _say(self, line: str, style: str) -> None:
        self._end_line()
        self._console.print(Text(f"  {line}", style=style))

    def _now(self) -> RenderableType:
        return Group(self._words(), self._countdown())

    def _words(self) -> Text:
        return Text(self._transcript.text)

    def _countdown(self) -> Text:
        if self._waiting is None:
            return Text("")
        left = (self._waiting.retrying_at - datetime.now(UTC)).total_seconds()
        return Text(f"  retrying in {left:.1f} s" if left > 0 else "  retrying", style="yellow")


def _calling(event: TurnStarted) -> str:
    sent = "continuing the stored chain" if event.chained else "sending the full history"
    return f"{event.provider} {event.model or ''}, {sent}"
