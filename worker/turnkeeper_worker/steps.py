"""What follows a step's answer: the end of the turn, tools, or the model again.  Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from turnkeeper.messages import Message, ToolCall, ToolResult
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.providers import Answer
from turnkeeper_worker.store import Claimed
from turnkeeper_worker.tools import Toolbox

STEP_LIMIT = "step_limit"
"""Why a turn stopped that would have gone on for ever."""
_NOT_RUN = "The tool was not run: the turn has reached its limit of steps."


@dataclass(frozen=True, slots=True)
class Finish:
    """The turn is complete."""

    why: str
    """In the words of `TurnCompleted.finish`."""
    results: tuple[ToolResult, ...] = ()
    """Of calls that are not made any more."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """The model paused; let it go on."""


@dataclass(frozen=True, slots=True)
class RunTools:
    """The model waits for results of ours."""

    runs: tuple[Run, ...]
    awaits_more: bool
    """Whether it waits for results of the producer's as well, which come with the next turn."""


Following: TypeAlias = Finish | GoOn | RunTools


def what_follows(answer: Answer, turn: Claimed, toolbox: Toolbox, *, max_steps: int) -> Following:
    """Choose what follows an answer.

    Args:
        answer: What the model said.
        turn: The turn, with the tools that it offers and the step that it is at.
        toolbox: The tools that we can run.
        max_steps: How many steps a turn may have.
    """
    is_last = turn.step >= max_steps
    if answer.finish == "pause_turn":
        return Finish(answer.finish) if is_last else GoOn()
    calls = [part for message in answer.messages for part in message.parts if isinstance(part, ToolCall)]
    ours = _ours(calls, turn)
    if not ours:
        return Finish(answer.finish)
    if is_last:
        return Finish(STEP_LIMIT, tuple(_not_run(call) for call in ours))
    offered = toolbox.only(turn.tools)
    runs = tuple(
        Run(call=call, number=number, idempotent=offered.is_idempotent(call.name))
        for number, call in enumerate(ours, start=1)
    )
    answered = {"", *(call.call_id for call in ours)}
    return RunTools(runs, awaits_more=any(call.call_id not in answered for call in calls))


def results_message(results: Iterable[ToolResult]) -> tuple[Message, ...]:
    """Return *results* as the message that tells them, where there are any."""
    parts = tuple(results)
    return (Message(role="user", parts=parts),) if parts else ()


def _ours(calls: Iterable[ToolCall], turn: Claimed) -> list[ToolCall]:
    """Return the calls that a worker answers.

    The producer answers for the tools that its options describe, and for everything where the turn offers none of
    the workers' tools. A name that the model made up is answered by us, so that it hears of its mistake at once.
    """
    if not turn.tools:
        return []
    described = _described(turn.options.get("tools")) - set(turn.tools)
    by_id: dict[str, ToolCall] = {}
    for call in calls:
        # Under one id there is one result; without an id there is none.
        if call.call_id and call.name not in described:
            by_id.setdefault(call.call_id, call)
    return list(by_id.values())


def _described(tools: Any) -> set[str]:
    """Return the names of the tools that a producer's options describe, in the shape of any API."""
    found = set()
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, Mapping):
            function = tool.get("function")
            found.add(str((function if isinstance(function, Mapping) else tool).get("name", "")))
    return found


def _not_run(call: ToolCall) -> ToolResult:
    return ToolResult(call_id=call.call_id, output=_NOT_RUN, is_error=True)
