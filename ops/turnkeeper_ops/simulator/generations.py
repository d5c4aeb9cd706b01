"""Background responses: the model goes on when the client is gone, and who comes back finds the rest.

A fault strikes the connection on which it was asked for; the generation behind it is spared, but for what
the provider itself would suffer: an error event fails it, an incomplete answer stops it, a queue holds it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

from turnkeeper_ops.simulator.actions import Action, Commit, Send, Wait
from turnkeeper_ops.simulator.journal import Entry
from turnkeeper_ops.simulator.scripts import (
    Answering,
    AnsweringStep,
    AnswerStep,
    EmptyStep,
    ErrorEventStep,
    IncompleteStep,
    Retrieval,
)

MAX_GENERATIONS = 5_000
"""The oldest is forgotten first; what it completed is in the vault."""
OPENING_EVENTS = 2
"""`response.created` and `response.queued`; the next one says that the model has begun."""

Body = Mapping[str, Any]
GeneratingStep: TypeAlias = AnsweringStep | EmptyStep
"""The steps that make the model begin."""


def spared(step: GeneratingStep) -> AnswerStep | ErrorEventStep | IncompleteStep | EmptyStep:
    """Return what the generation does while *step* strikes the connection.

    >>> from turnkeeper_ops.simulator.scripts import CutStep
    >>> spared(CutStep(at=3, text="Hello")) == AnswerStep(text="Hello")
    True
    """
    if isinstance(step, AnswerStep | ErrorEventStep | IncompleteStep | EmptyStep):
        return step
    return AnswerStep(**{name: getattr(step, name) for name in Answering.model_fields})


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One background response while the model works on it, and after."""

    id: str
    entry: Entry
    """The request that asked for it; who fetches it later is noted there."""
    streamed: bool
    """Whether it was asked for as a stream; only then can a stream of it be taken up again."""
    resumable: bool
    retrieval: Retrieval
    """How the response fails those who ask for it."""
    body: Callable[[str], Body]
    """Returns the response with a status: queued or in_progress."""
    cancelled: Callable[[int], Body]
    """Returns the response that was called off after so many chunks."""
    outcome: Callable[[], Body]
    """Returns the response at its end; asked once, when it has ended."""
    store: Callable[[], None]
    """Stores the response, which can be continued from then on."""
    _events: list[bytes] = field(default_factory=list)
    """By sequence number."""
    _chunks: int = 0
    """How many chunks the model has said."""
    _asked: bool = False
    """Whether somebody has asked for the response."""
    _ended: Body | None = None
    _over: bool = False
    """No event will come any more."""
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever there is something new."""
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self, actions: Iterable[Action]) -> None:
        """Begin to generate."""
        self._task = asyncio.get_running_loop().create_task(self._run(actions))

    def ask(self) -> int:
        """Return the status that a request for the response is answered with: 200, 404 or 500."""
        first, self._asked = not self._asked, True
        match self.retrieval:
            case Retrieval.OK:
                return 200
            case Retrieval.GONE:
                return 404
            case Retrieval.GONE_ONCE:
                return 404 if first else 200
            case Retrieval.UNAVAILABLE:
                return 500
            case Retrieval.UNAVAILABLE_ONCE:
                return 500 if first else 200
            case other:
                assert_never(other)

    def response(self) -> Body:
        """Return the response as it is now."""
        if self._ended is not None:
            return self._ended
        return self.body("queued" if len(self._events) <= OPENING_EVENTS else "in_progress")

    def commit(self) -> None:
        """Store the response, unless that is done; its last event may be told from now on."""
        if self._ended is None:
            self._ended = self.outcome()
            self.store()

    def cancel(self) -> None:
        """Call the answer off, unless it has ended."""
        if self._ended is not None:
            return
        self._ended, self._over = self.cancelled(self._chunks), True
        self._cancelled.set()
        self._move()
        if self._task is not None:
            self._task.cancel()

    async def called_off(self, within: float) -> bool:
        """Wait for a cancel, so many seconds; tell whether it came."""
        try:
            await asyncio.wait_for(self._cancelled.wait(), within)
        except TimeoutError:
            return False
        return True

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """Yield the events behind sequence number *after*, as they come, to the last."""
        number = after + 1
        while True:
            moved = self._moved
            for event in self._events[number:]:
                number += 1
                yield event
            if self._over:
                return
            await moved.wait()

    async def _run(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(data, chunks):
                    self._events.append(data)
                    self._chunks += chunks
                    self._move()
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Commit():
                    self.commit()
        if self._ended is None:
            self._ended = self.outcome()
        self._over = True
        self._move()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


@dataclass(slots=True)
class Generations:
    """The background responses by id."""

    _by_id: OrderedDict[str, Generation] = field(default_factory=OrderedDict)

    def add(self, generation: Generation) -> None:
        """Keep a generation; the oldest makes room, and is called off if it still runs."""
        self._by_id[generation.id] = generation
        if len(self._by_id) > MAX_GENERATIONS:
            self.drop(next(iter(self._by_id)))

    def get(self, response_id: str) -> Generation | None:
        """Return the generation, or None where there is none of this id."""
        return self._by_id.get(response_id)

    def drop(self, response_id: str) -> bool:
        """Call a generation off and forget it; tell whether it was there."""
        generation = self._by_id.pop(response_id, None)
        if generation is not None:
            generation.cancel()
        return generation is not None

    def clear(self) -> None:
        """Call all off and forget them."""
        for response_id in tuple(self._by_id):
            self.drop(response_id)
