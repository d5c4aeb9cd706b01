"""One request to the model, from its arrival to its last byte, in whatever API it came.

An API is one subclass: how it reads a request, and in which words it refuses one.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from turnkeeper_ops.simulator.actions import Action, Scene, perform, respond
from turnkeeper_ops.simulator.channel import Channel, Request
from turnkeeper_ops.simulator.generations import GeneratingStep
from turnkeeper_ops.simulator.journal import Entry
from turnkeeper_ops.simulator.limits import Level
from turnkeeper_ops.simulator.play import Stage, sleep
from turnkeeper_ops.simulator.scripts import Step
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.turns import UnknownScript, sender_of
from turnkeeper_ops.simulator.wire import Headers, Prompt, Refused, Wire


def make_id(prefix: str) -> str:
    """Return a fresh id, such as `msg_…`."""
    return f"{prefix}_{secrets.token_hex(24)}"


async def answer(kind: "type[Exchange]", state: State, request: Request, connection: Channel) -> None:
    """Answer one request to the model, and log it."""
    entry = state.journal.open(
        api=kind.api, sender=sender_of(request.headers), arrived=state.clock(), request_bytes=len(request.body)
    )
    exchange = kind(state, entry)
    try:
        # Before the headers are asked for: they tell what is left of the limit.
        actions = exchange.actions(request)
        stage = Stage(
            connection=connection,
            entry=entry,
            clock=state.clock,
            headers={**exchange.headers(), **exchange.limit_headers()},
            commit=exchange.commit,
            pause=exchange.pause,
        )
        await stage.play(actions)
    finally:
        exchange.release()


class Exchange(ABC):
    """How one request is answered: checked, matched with its step, and performed."""

    api: ClassVar[str]
    """The API's name in the log."""

    def __init__(self, state: State, entry: Entry) -> None:
        self.state = state
        self.entry = entry
        self.key = ""
        """Who calls; known once the request is read."""
        self._level: Level | None = None

    def actions(self, request: Request) -> Iterator[Action]:
        """Return what is to be done; a request that the API would not take is refused."""
        try:
            prompt = self.read(request)
            if self._is_throttled():
                return self._refuse(self.too_many(), "rate_limited")
            return self._perform(prompt)
        except Refused as refused:
            return self._refuse(refused, "refused")

    def limit_headers(self) -> Headers:
        """Return the headers that tell what is left of the limit; none where nothing is limited, or told."""
        return self.tell(self._level) if self._level is not None and self._level.limit.headers else {}

    # What each API does in its own way.

    @abstractmethod
    def headers(self) -> Headers:
        """Return the headers that the provider sends with everything."""

    @abstractmethod
    def read(self, request: Request) -> Prompt:
        """Check the request, note it in the log, and return what the model reads.

        Raises:
            Refused: In the API's own words.
        """

    @abstractmethod
    def wire(self, prompt: Prompt) -> Wire:
        """Return the answering side; called once, after `read`."""

    @abstractmethod
    def too_long(self, prompt: Prompt) -> Refused:
        """Say that the prompt does not fit."""

    @abstractmethod
    def too_many(self) -> Refused:
        """Say that the key has made too many requests."""

    @abstractmethod
    def tell(self, level: Level) -> Headers:
        """Tell what is left of the limit."""

    @abstractmethod
    def unknown_script(self, error: UnknownScript) -> Refused:
        """Say that there is no such script."""

    # What only an API that stores responses does.

    def begin(self, step: Step, scene: Scene) -> Iterator[Action]:
        """Return what is done for *step*."""
        return perform(step, scene)

    def commit(self) -> None:  # noqa: B027  # most APIs store nothing
        """Store the answer, which is complete."""

    def release(self) -> None:  # noqa: B027  # most APIs hold nothing
        """Let go of what the request held while it was answered, however that ended."""

    async def pause(self, seconds: float) -> bool:
        """Wait; return True where the answer was called off meanwhile."""
        return await sleep(seconds)

    def _is_throttled(self) -> bool:
        self._level = self.state.limiter.take(self.key, self.entry.model or "", self.entry.arrived.monotonic)
        return self._level is not None and not self._level.is_accepted

    def _refuse(self, refused: Refused, outcome: str) -> Iterator[Action]:
        self.entry.detail = str(refused)
        return respond(refused.plain(), outcome=outcome)

    def _perform(self, prompt: Prompt) -> Iterator[Action]:
        if prompt.input_tokens > self.state.settings.context_tokens:
            raise self.too_long(prompt)
        step = self._next_step(prompt)
        self.entry.generated = isinstance(step, GeneratingStep)
        scene = Scene(
            wire=self.wire(prompt),
            prompt=prompt,
            now=self.entry.arrived.wall,
            chunk_delay_ms=self.state.settings.chunk_delay_ms,
        )
        return self.begin(step, scene)

    def _next_step(self, prompt: Prompt) -> Step:
        try:
            self.entry.applied = self.state.book.next_step(self.entry.sender, prompt)
        except UnknownScript as error:
            raise self.unknown_script(error) from error
        return self.entry.applied.step
