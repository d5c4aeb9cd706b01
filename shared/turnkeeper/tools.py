"""Tools that workers run for the model: what their authors write.

```python
class City(BaseModel):
    name: str = Field(description="As its inhabitants spell it.")


async def forecast(city: City, context: ToolContext) -> str:
    return await ask_the_weather_office(city.name)


FORECAST = Tool(
    name="forecast", description="Tells tomorrow's weather.", arguments=City, run=forecast, idempotent=True
)
```
An entry point of the group `turnkeeper.tools` brings it to every worker that has the package installed; a turn
offers it to its model by name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel

ENTRY_POINTS = "turnkeeper.tools"
"""The entry point group in which workers look for tools."""

MAX_TIMEOUT_SECONDS = 3600.0

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

ArgumentsT = TypeVar("ArgumentsT", bound=BaseModel)


class ToolFailed(Exception):
    """Raised by a tool that has something to say to the model: its message becomes the result.

    Of any other exception the model learns nothing but its class, because the message may hold what it should not.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """For whom a tool runs."""

    turn_id: UUID
    chat_id: UUID
    owner: str
    step: int
    call_id: str

    @property
    def key(self) -> str:
        """A key that this run, and none but this run and its repetitions after a crash, has.

        Systems that take idempotency keys make a tool idempotent by it.
        """
        return f"{self.turn_id}/{self.step}/{self.call_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Generic[ArgumentsT]):
    """A tool: what the model is told, and what runs.  Raises ValueError for what no provider would take."""

    name: str
    """Letters, digits, `_` and `-`, at most 64."""
    description: str
    """What it does and when to use it, for the model."""
    arguments: type[ArgumentsT]
    """Its JSON schema is what the model is shown; what the model writes is validated by it."""
    run: Callable[[ArgumentsT, ToolContext], Any]
    """A coroutine function, or a plain one, which gets a thread of its own.

    The model is told what it returns: text as it is, anything else as JSON."""
    idempotent: bool = False
    """Whether it may run again when a worker died while it ran; if not, the model is told of the interruption."""
    timeout_seconds: float = 60.0
    """How long it may take; a plain function that takes longer is left behind, for threads cannot be stopped."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of a tool; use 1 to 64 letters, digits, _ and -")
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise ValueError(f"timeout_seconds of {self.name} must be above 0 and at most {MAX_TIMEOUT_SECONDS:g}")
