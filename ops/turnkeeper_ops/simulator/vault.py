"""The stored responses, bounded.  Each knows the one before it, so that a chain is a whole conversation."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

Item: TypeAlias = Mapping[str, Any]
"""An item of a conversation, as it came over the wire."""

MAX_RESPONSES = 20_000
"""The oldest response is dropped first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredResponse:
    """A response with what it answered, and the one it continued from."""

    id: str
    previous: "StoredResponse | None"
    """The object, not its id: a chain keeps its history when an earlier response is deleted."""
    conversation: str
    """The id of the first response of the chain."""
    input: tuple[Item, ...]
    output: tuple[Item, ...]
    chars: int
    """Characters of text in the whole conversation up to here."""
    body: Mapping[str, Any]
    """What a retrieval answers."""


def history(response: StoredResponse | None) -> tuple[Item, ...]:
    """Return every item of the conversation up to *response*, oldest first."""
    turns: list[StoredResponse] = []
    while response is not None:
        turns.append(response)
        response = response.previous
    return tuple(item for turn in reversed(turns) for item in (*turn.input, *turn.output))


@dataclass(slots=True)
class Vault:
    """The stored responses by id, and the items they produced by id."""

    _responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    _items: dict[str, Item] = field(default_factory=dict)
    _reasoning: dict[str, str] = field(default_factory=dict)
    """The reasoning item that must precede an item, by that item's id."""

    def __len__(self) -> int:
        return len(self._responses)

    def get(self, response_id: str) -> StoredResponse | None:
        """Return the response, or None where it is not stored."""
        return self._responses.get(response_id)

    def item(self, item_id: str) -> Item | None:
        """Return an item of a stored response."""
        return self._items.get(item_id)

    def reasoning_of(self, item_id: str) -> str | None:
        """Return the id of the reasoning item that a stored item came with."""
        return self._reasoning.get(item_id)

    def add(self, response: StoredResponse) -> None:
        """Store a response; the oldest makes room."""
        self._responses[response.id] = response
        for item in response.output:
            self._items[item["id"]] = item
        for before, item in pairwise(response.output):
            if before["type"] == "reasoning":
                self._reasoning[item["id"]] = before["id"]
        if len(self._responses) > MAX_RESPONSES:
            self.delete(next(iter(self._responses)))

    def delete(self, response_id: str) -> bool:
        """Drop a response and its items; tell whether it was there."""
        response = self._responses.pop(response_id, None)
        if response is None:
            return False
        for item in response.output:
            self._items.pop(item["id"], None)
            self._reasoning.pop(item["id"], None)
        return True

    def drop_conversation(self, response_id: str) -> list[str]:
        """Drop every response of the conversation that *response_id* belongs to; return their ids."""
        response = self._responses.get(response_id)
        if response is None:
            return []
        lost = [each.id for each in self._responses.values() if each.conversation == response.conversation]
        for other in lost:
            self.delete(other)
        return lost

    def clear(self) -> int:
        """Drop everything, as an expired retention would; return how many responses that was."""
        dropped = len(self._responses)
        self._responses.clear()
        self._items.clear()
        self._reasoning.clear()
        return dropped
