"""What a row of a table of faults is: a script of the simulator, and what becomes of the turns that it strikes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from turnkeeper import AttemptOutcome, ErrorKind, TurnState
from turnkeeper.messages import Part
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES
from turnkeeper_ops.simulator.ready_made import ready_made_scripts
from turnkeeper_ops.simulator.scripts import Script, Step

CHUNK_CHARS = 12
MID = 3
"""The chunks that are out when a fault strikes in mid-answer."""
SLOWLY = {"chunk_delay_ms": 60}
"""A connection that breaks takes along what the worker has not read yet: this leaves it the time."""


class Api(Enum):
    """A wire format, by the provider of the stack that speaks it."""

    RESPONSES = SIMULATOR
    CHAT = SIMULATOR_CHAT
    MESSAGES = SIMULATOR_MESSAGES


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that fails."""

    kind: ErrorKind
    seen: bool
    """Whether a part of the answer was visible before."""
    heals: bool = False
    """What follows is the whole history, at once."""

    @property
    def outcome(self) -> AttemptOutcome:
        """How the attempt ends where another follows."""
        return AttemptOutcome.HEALED if self.heals else AttemptOutcome.RETRIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What becomes of a turn."""

    state: TurnState = TurnState.COMPLETED
    failed: tuple[Failed, ...] = ()
    """The attempts that failed; of a failed turn the last one ended it."""
    finish: str = "stop"
    said: tuple[int | None, ...] = (None,)
    """Of each step that was answered, how many chunks of the answer were said; None: all of them."""
    parts: tuple[type[Part], ...] = ()
    """What the answer holds besides words."""

    @property
    def tries(self) -> list[tuple[AttemptOutcome, str | None]]:
        """The outcome and the kind of each attempt."""
        retried: list[tuple[AttemptOutcome, str | None]] = [(one.outcome, one.kind) for one in self.failed]
        if self.state is TurnState.FAILED:
            return [*retried[:-1], (AttemptOutcome.FAILED, self.failed[-1].kind)]
        return [*retried, *((AttemptOutcome.COMPLETED, None) for _ in self.said)]

    def text(self, answer: str) -> str:
        """Return the stored words, where the whole answer is *answer*."""
        if self.state is TurnState.FAILED:
            return ""
        return "".join(answer if chunks is None else answer[: chunks * CHUNK_CHARS] for chunks in self.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A fault, and what becomes of the turns that it strikes."""

    name: str
    steps: tuple[dict[str, Any], ...] = ()
    """None: those of the ready-made script of this name."""
    ending: Ending
    unlike: Mapping[Api, Ending] = field(default_factory=dict)
    """Where an API has another ending."""
    wait_ms: int = 0
    """The least wait that the provider asks for."""
    is_hasty: bool = False
    """The worker has little patience with the provider."""

    @property
    def script(self) -> tuple[Step, ...]:
        """The steps as the simulator reads them."""
        if not self.steps:
            return ready_made_scripts()[self.name].steps
        return Script.model_validate({"steps": self.steps}).steps

    def on(self, api: Api) -> Ending:
        """Return the ending on *api*."""
        return self.unlike.get(api, self.ending)


def unseen(kind: ErrorKind) -> Failed:
    """An attempt that fails before a word."""
    return Failed(kind, seen=False)


def seen(kind: ErrorKind) -> Failed:
    """An attempt that fails when a part of the answer is out."""
    return Failed(kind, seen=True)


def passes(*failed: Failed) -> Ending:
    """The answer comes after these attempts."""
    return Ending(failed=failed)


def stays(*failed: Failed) -> Ending:
    """The turn ends with the last of these attempts."""
    return Ending(state=TurnState.FAILED, failed=failed)


def stands(finish: str = "stop", *, chunks: int | None = None, parts: tuple[type[Part], ...] = ()) -> Ending:
    """The first attempt brings the answer, or so many chunks of it."""
    return Ending(finish=finish, said=(chunks,), parts=parts)


def row(name: str, *steps: dict[str, Any], ending: Ending, **more: Any) -> Row:
    """Return a row; an API's own ending is named after it, in lower case."""
    apis = {api: more.pop(api.name.lower()) for api in Api if api.name.lower() in more}
    return Row(name=name, steps=steps, ending=ending, unlike=apis, **more)
