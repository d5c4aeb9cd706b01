"""Which script applies to a request, and which of its steps.

The word `sim:NAME` in the last user message names the script.  Steps are counted per script and turn;
a turn is known by the request header that our worker sends, or else by what the user has said.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from turnkeeper_ops.simulator.scripts import AnswerStep, LostAnchorStep, Script, Step
from turnkeeper_ops.simulator.wire import Prompt

TURN_HEADER = "x-client-request-id"
"""`<turn>/<attempt>`; the part behind the slash is optional."""
MAX_COUNTED_TURNS = 100_000
"""Turns whose place in their script is remembered; the one longest untouched is forgotten first."""

_NAMED = re.compile(r"(?<![\w:/.@-])sim:([a-z0-9][a-z0-9_-]*)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, as far as its header tells."""

    turn: str | None
    attempt: str | None


@dataclass(frozen=True, slots=True)
class Applied:
    """The step that applies to a request."""

    step: Step
    script: str | None = None
    """None: no script is named, the model answers plainly."""
    number: int | None = None
    """The step's place in its script, from 1; None where the model answers plainly."""


class UnknownScript(Exception):
    """A message names a script that is not there."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = known

    def __str__(self) -> str:
        return f"The simulator has no script '{self.name}'. There are: {', '.join(self.known)}."


@dataclass(slots=True)
class ScriptBook:
    """The scripts by name, and how far each turn has come in its own."""

    scripts: dict[str, Script]
    _taken: OrderedDict[tuple[str, str], int] = field(default_factory=OrderedDict)

    def put(self, name: str, script: Script) -> None:
        """Add or replace a script; every turn begins it anew."""
        self.scripts[name] = script
        self._forget(name)

    def remove(self, name: str) -> bool:
        """Remove a script; tell whether it was there."""
        self._forget(name)
        return self.scripts.pop(name, None) is not None

    def next_step(self, sender: Sender, prompt: Prompt) -> Applied:
        """Take the step that applies to this request.

        Raises:
            UnknownScript: The last user message names a script that is not there.
        """
        name = named_script(prompt)
        if name is None:
            return Applied(AnswerStep())
        if name not in self.scripts:
            raise UnknownScript(name, tuple(sorted(self.scripts)))
        key = name, sender.turn or digest(prompt)
        applied, taken = _advance(name, self.scripts[name], self._taken.get(key, 0), prompt)
        self._remember(key, taken)
        return applied

    def _remember(self, key: tuple[str, str], taken: int) -> None:
        self._taken[key] = taken
        self._taken.move_to_end(key)
        if len(self._taken) > MAX_COUNTED_TURNS:
            self._taken.popitem(last=False)

    def _forget(self, name: str) -> None:
        for key in [key for key in self._taken if key[0] == name]:
            del self._taken[key]


def named_script(prompt: Prompt) -> str | None:
    """Return the name of the script that the last user message asks for.

    Only the last message counts, so that a chat goes on plainly after a scripted turn.
    """
    if not prompt.user_texts:
        return None
    found = _NAMED.search(prompt.user_texts[-1])
    return found[1].lower() if found else None


def digest(prompt: Prompt) -> str:
    """Tell turns without a header apart by what the user has said.

    The user's words alone: they are the same in a retry, in a full replay and after a tool call.
    """
    return blake2b("\0".join(prompt.user_texts).encode("utf-8", "replace"), digest_size=16).hexdigest()


def sender_of(headers: Mapping[str, str]) -> Sender:
    """Read the turn and the attempt from the request's headers (lower-case names).

    >>> sender_of({"x-client-request-id": "7f3/2"})
    Sender(turn='7f3', attempt='2')
    """
    turn, _, attempt = headers.get(TURN_HEADER, "").partition("/")
    return Sender(turn=turn or None, attempt=attempt or None)


def _advance(name: str, script: Script, taken: int, prompt: Prompt) -> tuple[Applied, int]:
    """Return the step after *taken* ones, and how many are taken now."""
    for index, step in enumerate(script.steps[taken:], start=taken):
        if not _passes_over(step, prompt):
            return Applied(step, name, index + 1), index + 1
    last = script.steps[-1]
    if script.repeat_last and not _passes_over(last, prompt):
        return Applied(last, name, len(script.steps)), len(script.steps)
    return Applied(AnswerStep(), name), len(script.steps)


def _passes_over(step: Step, prompt: Prompt) -> bool:
    """Tell whether *step* has nothing to strike at."""
    return isinstance(step, LostAnchorStep) and not (prompt.chained or step.even_unchained)
