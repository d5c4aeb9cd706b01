"""Spans, where OpenTelemetry is installed (`turnkeeper[otel]`) and `OTEL_*` says where they go; else nothing.

Attributes are ids, names and numbers: no word of a chat and no key is ever among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from turnkeeper.tracing import TRACEPARENT
from turnkeeper_worker.telemetry import get_logger

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer as OtelTracer

log = get_logger(__name__)

Attributes: TypeAlias = Mapping[str, str | int | float]
SpanKind = Literal["consumer", "client"]
SERVICE = "turnkeeper-worker"


class Span(Protocol):
    """Something that takes time."""

    def note(self, attributes: Attributes) -> None:
        """Add what is known now."""

    def end(self, *, error: str | None = None) -> None:
        """End it; *error* is the kind of what went wrong."""


class Tracer(Protocol):
    """Begins spans."""

    def begin(self, name: str, kind: SpanKind, attributes: Attributes, *, within: "Span | str | None") -> Span:
        """Begin a span.

        Args:
            name: What is done; a few words, of which there are few.
            kind: Whether work is taken in, or asked of somebody else.
            attributes: What is known of it.
            within: The span that it is a part of, ours or that of another process.
        """

    def close(self) -> None:
        """Send what is left; takes seconds at most."""


class Untraced:
    """The span and the tracer of a worker that traces nothing."""

    def begin(self, name: str, kind: SpanKind, attributes: Attributes, *, within: "Span | str | None") -> Span:
        """Begin nothing."""
        del name, kind, attributes, within
        return self

    def note(self, attributes: Attributes) -> None:
        """Note nothing."""

    def end(self, *, error: str | None = None) -> None:
        """End nothing."""

    def close(self) -> None:
        """Send nothing."""


UNTRACED = Untraced()


def open_tracer(environment: Mapping[str, str]) -> Tracer:
    """Return the tracer that the environment asks for."""
    if not _is_wanted(environment):
        return UNTRACED
    try:
        provider = _open_provider(environment)
    except ImportError as error:
        log.warning("traces.unavailable", error=str(error), hint="pip install 'turnkeeper[otel]'")
        return UNTRACED
    return _Traced(provider.get_tracer("turnkeeper"), provider)


def _is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether somebody configured a place for traces: by default the SDK would try one that is not there."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter not in {"", "otlp"}:
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return bool(exporter or any(environment.get(name) for name in endpoints))


def _open_provider(environment: Mapping[str, str]) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - optional
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - optional

    is_named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if is_named else {"service.name": SERVICE})
    # Not made the process's own: nothing else here is traced, and a tool may bring a provider of its own.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@dataclass(frozen=True, slots=True)
class _TracedSpan:
    inner: "OtelSpan"

    def note(self, attributes: Attributes) -> None:
        self.inner.set_attributes(dict(attributes))

    def end(self, *, error: str | None = None) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - optional

        if error is not None:
            self.inner.set_attribute("error.type", error)
            self.inner.set_status(StatusCode.ERROR)
        self.inner.end()


@dataclass(frozen=True, slots=True)
class _Traced:
    tracer: "OtelTracer"
    provider: "TracerProvider"

    def begin(self, name: str, kind: SpanKind, attributes: Attributes, *, within: Span | str | None) -> Span:
        from opentelemetry.trace import SpanKind as Kind  # noqa: PLC0415 - optional

        span = self.tracer.start_span(
            name, context=_context(within), kind=Kind[kind.upper()], attributes=dict(attributes)
        )
        return _TracedSpan(span)

    def close(self) -> None:
        self.provider.shutdown()


def _context(within: Span | str | None) -> "Context":
    from opentelemetry.context import Context  # noqa: PLC0415 - optional
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - optional
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - optional
        TraceContextTextMapPropagator,
    )

    # An empty one: whatever a library made current on this loop has nothing to do with the turn.
    nothing = Context()
    if isinstance(within, str):
        return TraceContextTextMapPropagator().extract({TRACEPARENT: within}, context=nothing)
    return set_span_in_context(within.inner, nothing) if isinstance(within, _TracedSpan) else nothing
