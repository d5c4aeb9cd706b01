"""The worker's tools: found by entry point, run for the model, every end of a run a result that it can read.

Nothing that a tool does ends a turn: bad arguments, exceptions, time that ran out and answers that cannot be
told become results that say so.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
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

    def only(self, names: Collection[str]) -> "Toolbox":
        """Return the toolbox of a turn, which offers no more than *names* to its model."""
        return Toolbox({name: tool for name, tool in self.tools.items() if name in names})

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of *names* that this worker has no tool for."""
        return tuple(name for name in names if name not in self.tools)

    def specs(self) -> tuple[ToolSpec, ...]:
        """Describe the tools to a model."""
        return tuple(map(_spec, self.tools.values()))

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
        except Exception as error:  # noqa: BLE001 - a validator is the tool's code as well
            return _crashed(tool, call, context, error)
        return await _run(tool, arguments, call, context)


def load_toolbox() -> Toolbox:
    """Load every tool that is installed.  Raises InvalidSettings with the package that is at fault."""
    tools: dict[str, Tool[Any]] = {}
    packages: dict[str, str] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        tool, package = _load(entry), _package_of(entry)
        if tool.name in tools:
            both = f"{packages[tool.name]} and {package}"
            raise InvalidSettings(f"{both} both bring a tool {tool.name}; uninstall one of them")
        tools[tool.name], packages[tool.name] = tool, package
    return Toolbox(tools)


def _load(entry: EntryPoint) -> Tool[Any]:
    package = _package_of(entry)
    try:
        tool = entry.load()
        if isinstance(tool, Tool):
            # Arguments without a schema would break every turn that offers the tool.
            _spec(tool)
            return tool
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidSettings(f"the tool {entry.name} of {package} cannot be loaded: {reason}") from error
    raise InvalidSettings(f"{entry.value}, the tool {entry.name} of {package}, is no turnkeeper.tools.Tool")


def _package_of(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


@cache
def _spec(tool: Tool[Any]) -> ToolSpec:
    return ToolSpec(name=tool.name, description=tool.description, parameters=tool.arguments.model_json_schema())


async def _run(tool: Tool[Any], arguments: BaseModel, call: ToolCall, context: ToolContext) -> ToolResult:
    try:
        async with asyncio.timeout(tool.timeout_seconds):
            returned = await _start(tool, arguments, context)
    except TimeoutError:
        # What a tool itself raises comes as a value; this deadline is ours.
        return _failed(call, f"The tool gave no result within {tool.timeout_seconds:g} s.")
    return _told(call, returned) if not isinstance(returned, _Raised) else _refused(tool, call, context, returned)


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a tool raised, as a value: thrown, it could pass for a cancel or an exit of ours."""

    error: BaseException


def _refused(tool: Tool[Any], call: ToolCall, context: ToolContext, raised: _Raised) -> ToolResult:
    match raised.error:
        case ToolFailed() as error:
            return _told(call, str(error)).model_copy(update={"is_error": True})
        case asyncio.CancelledError():
            return _failed(call, "The tool was cancelled.")
        case error:
            return _crashed(tool, call, context, error)


async def _start(tool: Tool[Any], arguments: BaseModel, context: ToolContext) -> object:
    if not inspect.iscoroutinefunction(tool.run):
        return await _in_thread(lambda: tool.run(arguments, context))

    async def run() -> object:
        try:
            return await tool.run(arguments, context)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a tool is somebody else's code: its faults end nothing
            return _Raised(error)

    # A task of its own: a tool that cancels its task cancels nothing of ours, and one that resists is left behind.
    task = asyncio.create_task(run())
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        raise
    return _Raised(asyncio.CancelledError()) if task.cancelled() else task.result()


async def _in_thread(function: Callable[[], object]) -> object:
    """Run a blocking function.

    In a thread of its own that nobody waits for at exit: a tool that hangs must starve no other, nor keep the
    process from ending.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[object] = loop.create_future()

    def settle(result: object) -> None:
        if not ended.done():
            ended.set_result(result)

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - see above
            result = _Raised(error)
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="turnkeeper-tool", daemon=True).start()
    return await ended


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
