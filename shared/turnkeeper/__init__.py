"""Turnkeeper for producers: enqueue LLM chat turns, follow them, cancel them, read them.

Importing this package is cheap: the clients, and with them Celery and SQLAlchemy, load on first use.
"""

from typing import TYPE_CHECKING, Any

from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.events import Event, Transcript
from turnkeeper.exceptions import TurnkeeperError
from turnkeeper.messages import Message
from turnkeeper.requests import TurnRequest
from turnkeeper.states import AttemptOutcome, OnBusy, ToolRunState, TurnState
from turnkeeper.tools import Tool, ToolContext, ToolFailed

if TYPE_CHECKING:
    from turnkeeper.client import AsyncTurnkeeper, Turnkeeper

__all__ = [
    "AsyncTurnkeeper",
    "AttemptOutcome",
    "ChatError",
    "ErrorKind",
    "Event",
    "Message",
    "OnBusy",
    "Tool",
    "ToolContext",
    "ToolFailed",
    "ToolRunState",
    "Transcript",
    "TurnRequest",
    "TurnState",
    "Turnkeeper",
    "TurnkeeperError",
]


def __getattr__(name: str) -> Any:
    if name in {"AsyncTurnkeeper", "Turnkeeper"}:
        from turnkeeper import client  # noqa: PLC0415 - see the module's docstring

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
