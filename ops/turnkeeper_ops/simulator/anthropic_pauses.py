"""The answers that were paused: what alone may stand at the end of a request, unchanged, to be gone on with."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias

MAX_PAUSES = 20_000
"""The oldest is forgotten first."""

Said: TypeAlias = Sequence[Mapping[str, Any]]
"""The blocks of what the model said until it was paused."""


@dataclass(slots=True)
class Pauses:
    """The paused answers, by what they say."""

    _known: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def add(self, said: Said) -> None:
        """Remember what the model had said when it was paused."""
        self._known[_digest(said)] = None
        if len(self._known) > MAX_PAUSES:
            self._known.popitem(last=False)

    def holds(self, said: Said) -> bool:
        """Tell whether the model was paused when it had said exactly this.

        >>> pauses = Pauses()
        >>> pauses.add([{"type": "text", "text": "Hm"}])
        >>> pauses.holds([{"type": "text", "text": "Hm", "citations": None}]), pauses.holds([])
        (True, False)
        """
        return _digest(said) in self._known


def _digest(said: Said) -> str:
    """Tell blocks apart by all that they say; what is null may be left out, and caching says nothing."""
    blocks = [
        {
            name: _without_nulls(value)
            for name, value in block.items()
            if value is not None and name != "cache_control"
        }
        for block in said
    ]
    return blake2b(json.dumps(blocks, sort_keys=True).encode(), digest_size=16).hexdigest()


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
        case list():
            return [_without_nulls(inner) for inner in value]
    return value
