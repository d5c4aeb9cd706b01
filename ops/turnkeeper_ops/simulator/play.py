"""Does on a connection what `actions` lists, and notes in the log how it went."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from turnkeeper_ops.simulator.actions import (
    Action,
    Commit,
    Cut,
    Ending,
    Finish,
    GoAway,
    Head,
    Reset,
    ResetStream,
    Send,
    Wait,
)
from turnkeeper_ops.simulator.channel import Channel
from turnkeeper_ops.simulator.journal import Entry, Instant


async def sleep(seconds: float) -> bool:
    """Wait; nobody calls this answer off."""
    await asyncio.sleep(seconds)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where actions are done, and what they are noted in."""

    connection: Channel
    entry: Entry
    clock: Callable[[], Instant]
    headers: Mapping[str, str]
    """They go with every head."""
    commit: Callable[[], None]
    """Stores the response."""
    pause: Callable[[float], Awaitable[bool]] = sleep
    """Waits so many seconds; returns True where the answer was called off meanwhile."""

    async def play(self, actions: Iterable[Action]) -> None:
        """Do *actions* in order, until they end or the client hangs up."""
        try:
            for action in actions:
                match action:
                    case Send(data, chunks):
                        self.connection.write(data)
                        self.entry.chunks += chunks
                    case Wait(seconds):
                        await self.connection.flush()
                        if await self.pause(seconds):
                            await self._end(Finish("cancelled"))
                            return
                    case Head(status, own):
                        self.entry.status = status
                        self.connection.begin(status, [*self.headers.items(), *own.items()])
                    case Commit():
                        self.commit()
                    case ending:
                        await self._end(ending)
        except asyncio.CancelledError:
            self._note("client_disconnected")
            raise

    async def _end(self, ending: Ending) -> None:
        # Noted before the last bytes leave: who has read them may look at the log at once.
        match ending:
            case Finish(outcome):
                self._note(outcome)
                await self.connection.finish()
            case Cut():
                self._note("cut")
                await self.connection.cut()
            case Reset():
                self._note("reset")
                await self.connection.reset()
            case ResetStream(code):
                self._note("reset_stream")
                await self.connection.reset_stream(code)
            case GoAway(code):
                self._note("go_away")
                await self.connection.go_away(code)
            case other:
                assert_never(other)

    def _note(self, outcome: str) -> None:
        """Note how the request ended; the first word stands."""
        if self.entry.ended is None:
            self.entry.outcome = outcome
            self.entry.ended = self.clock()
