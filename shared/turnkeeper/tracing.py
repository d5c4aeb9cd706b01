"""The producer's end of a trace: the span of an enqueue, and the `traceparent` that goes with the turn.

Nothing is imported for it. A producer that traces has OpenTelemetry loaded already; for any other there is nothing
to do.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

TRACEPARENT = "traceparent"
"""The header in which W3C's trace context travels."""
_WELL_FORMED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class EnqueueSpan:
    """What is under way, and where the workers shall go on from."""

    traceparent: str | None = None
    """None where nobody traces."""
    _span: Any = None

    def stored(self, turn_id: UUID, chat_id: UUID) -> None:
        """Note what was stored."""
        if self._span is not None:
            self._span.set_attribute("turnkeeper.turn.id", str(turn_id))
            self._span.set_attribute("turnkeeper.chat.id", str(chat_id))


@contextmanager
def enqueue_span() -> Iterator[EnqueueSpan]:
    """Trace an enqueue, where the producer traces."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        yield EnqueueSpan()
        return
    # An exception's text may quote the request, so only its class is told.
    with api.get_tracer("turnkeeper").start_as_current_span(
        "enqueue turn", kind=api.SpanKind.PRODUCER, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield EnqueueSpan(_traceparent(), span)
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(api.StatusCode.ERROR)
            raise


def read_traceparent(given: object) -> str | None:
    """Return what a message's header says, if it says anything that can be used.

    >>> read_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    >>> read_traceparent("yesterday") is None
    True
    """
    return given if isinstance(given, str) and _WELL_FORMED.fullmatch(given) else None


def _traceparent() -> str | None:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - see the module's docstring
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT)
