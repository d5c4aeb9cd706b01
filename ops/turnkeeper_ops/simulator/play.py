"""Does on a connection what `actions` lists, and notes in the log how it went."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from turnkeeper_ops.simulator.actions import Action, Commit, Cut, Finish, Head, Reset, Send, Wait
from turnkeeper_ops.simulator.connection import Connection
from turnkeeper_ops.simulator.journal import Entry, Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where actions are done, and what they are noted in."""

    connection: Connection
    entry: Entry
    clock: Callable[[], Instant]
    headers: Mapping[str, str]
    """They go with every head."""
    commit: Callable[[], None]
    """Stores the response."""

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
                        await asyncio.sleep(seconds)
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

    async def _end(self, ending: Finish | Cut | Reset) -> None:
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
            case other:
                assert_never(other)

    def _note(self, outcome: str) -> None:
        """Note how the request ended; the first word stands."""
        if self.entry.ended is None:
            self.entry.outcome = outcome
            self.entry.ended = self.clock()
