"""The worker's tools: found by entry point, run for the model, every end of a run a result that it can read.

Nothing that a tool does ends a turn: bad arguments, exceptions, time that ran out and answers that cannot be
told become results that say so.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from turnkeeper.exceptions import InvalidSettings
from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.requests import MAX_TEXT_BYTES, explain
from turnkeeper.tools import ENTRY_POINTS, Tool, ToolContext, ToolFailed
from turnkeeper_worker.providers import ToolSpec, storable
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools that this worker can run, by name."""

    tools: Mapping[str, Tool[Any]] = field(default_factory=dict)

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of *names* that this worker has no tool for."""
        return tuple(name for name in names if name not in self.tools)

    def specs(self, names: Iterable[str]) -> tuple[ToolSpec, ...]:
        """Describe tools to a model."""
        return tuple(_spec(self.tools[name]) for name in names if name in self.tools)

    def is_idempotent(self, name: str) -> bool:
        """Tell whether a run may be repeated; what does not exist does nothing, however often."""
        return name not in self.tools or self.tools[name].idempotent

    async def run(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run what the model called.  Raises nothing but CancelledError, and that only when we cancel."""
        tool = self.tools.get(call.name)
        if tool is None:
            return _failed(call, f"There is no tool {call.name}.")
        try:
            arguments = tool.arguments.model_validate_json(call.arguments or "{}")
        except ValidationError as error:
            return _failed(call, f"The arguments are wrong: {explain(error)}")
        return await _run(tool, arguments, call, context)


def load_toolbox() -> Toolbox:
    """Load every tool that is installed.  Raises InvalidSettings with the package that is at fault."""
    tools: dict[str, Tool[Any]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        tool = _load(entry)
        if tool.name in tools:
            raise InvalidSettings(f"two packages bring a tool {tool.name}; uninstall one of them")
        tools[tool.name] = tool
    return Toolbox(tools)


def _load(entry: EntryPoint) -> Tool[Any]:
    package = entry.dist.name if entry.dist else entry.value
    try:
        tool = entry.load()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidSettings(f"the tool {entry.name} of {package} cannot be loaded: {reason}") from error
    if not isinstance(tool, Tool):
        raise InvalidSettings(f"{entry.value}, the tool {entry.name} of {package}, is no turnkeeper.tools.Tool")
    return tool


def _spec(tool: Tool[Any]) -> ToolSpec:
    return ToolSpec(name=tool.name, description=tool.description, parameters=tool.arguments.model_json_schema())


async def _run(tool: Tool[Any], arguments: BaseModel, call: ToolCall, context: ToolContext) -> ToolResult:
    try:
        async with asyncio.timeout(tool.timeout_seconds):
            return _told(call, await _start(tool, arguments, context))
    except ToolFailed as error:
        return _told(call, str(error)).model_copy(update={"is_error": True})
    except TimeoutError:
        return _failed(call, f"The tool gave no result within {tool.timeout_seconds:g} s.")
    except asyncio.CancelledError:
        if _is_ours():
            raise
        return _failed(call, "The tool was cancelled.")
    except BaseException as error:  # noqa: BLE001 - a tool is somebody else's code: its faults end nothing
        return _crashed(tool, call, context, error)


def _is_ours() -> bool:
    """Tell whether the cancel that is under way was meant for the run, and not made by the tool itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _start(tool: Tool[Any], arguments: BaseModel, context: ToolContext) -> Awaitable[object]:
    if inspect.iscoroutinefunction(tool.run):
        ran: Awaitable[object] = tool.run(arguments, context)
        return ran
    return _in_thread(lambda: tool.run(arguments, context))


async def _in_thread(function: Callable[[], object]) -> object:
    """Run a blocking function.

    In a thread of its own that nobody waits for at exit: a tool that hangs must starve no other, nor keep the
    process from ending.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[object] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            _settle(loop, ended, error, None)
        else:
            _settle(loop, ended, None, result)

    threading.Thread(target=run, name="turnkeeper-tool", daemon=True).start()
    return await ended


def _settle(
    loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[object]", error: BaseException | None, result: object
) -> None:
    def settle() -> None:
        if ended.cancelled():
            return
        if error is not None:
            # A StopIteration cannot be raised through a future.
            ended.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
        else:
            ended.set_result(result)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)


def _told(call: ToolCall, value: object) -> ToolResult:
    """Word what a tool returned."""
    try:
        output = storable(_worded(value))
    except PydanticSerializationError:
        return _failed(call, f"The tool returned {type(value).__name__}, which is no JSON.")
    size = len(output.encode())
    if size > MAX_TEXT_BYTES:
        return _failed(call, f"The tool returned {size:,} bytes, and {MAX_TEXT_BYTES:,} are allowed.")
    return ToolResult(call_id=call.call_id, output=output)


def _worded(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case _:
            return to_json(value, inf_nan_mode="null").decode()


def _crashed(tool: Tool[Any], call: ToolCall, context: ToolContext, error: BaseException) -> ToolResult:
    # The trace without the message: it may quote the chat, or hold what nobody should read.
    log.warning(
        "tool.crashed", tool=tool.name, turn_id=str(context.turn_id), call_id=call.call_id, error=_class_of(error)
    )
    return _failed(call, f"The tool failed with {_class_of(error)}.")


def _class_of(error: BaseException) -> str:
    return type(error).__name__


def _failed(call: ToolCall, why: str) -> ToolResult:
    return ToolResult(call_id=call.call_id, output=storable(why), is_error=True)
