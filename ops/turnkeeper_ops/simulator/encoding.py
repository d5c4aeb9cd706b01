"""Server-sent events and JSON bodies, as every provider here encodes them."""

import json
from collections.abc import Mapping
from typing import Any

from turnkeeper_ops.simulator.wire import Frame, FrameKind

EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"

encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Encode without spaces; text stays text, so that a torn write tears characters."""


def encode_event(name: str, payload: Mapping[str, Any]) -> bytes:
    r"""Encode one event with a name.

    >>> encode_event("ping", {"type": "ping"})
    b'event: ping\ndata: {"type":"ping"}\n\n'
    """
    return utf8(f"event: {name}\ndata: {encode_json(payload)}\n\n")


def encode_data(payload: Mapping[str, Any]) -> bytes:
    r"""Encode one event that has no name.

    >>> encode_data({"choices": []})
    b'data: {"choices":[]}\n\n'
    """
    return utf8(f"data: {encode_json(payload)}\n\n")


def utf8(text: str) -> bytes:
    """Encode *text*; a lone surrogate cannot be, and is replaced."""
    return text.encode("utf-8", "replace")


def body_frames(body: Mapping[str, Any], pieces: int) -> list[Frame]:
    """Cut a JSON body into as many chunks as a stream would have, so that every fault can strike it too.

    The last bracket is the terminal frame: a body that ends before it is no JSON.
    """
    encoded = json.dumps(body).encode()[:-1]
    size = -(-len(encoded) // max(1, pieces))
    parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    return [*(Frame(part, FrameKind.CHUNK) for part in parts), Frame(b"}\n", FrameKind.TERMINAL)]
