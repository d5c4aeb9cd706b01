"""Traces from a producer through real workers to the provider, as a collector receives them over a real socket."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from turnkeeper import AttemptOutcome, TurnState
from turnkeeper.doorbell import SUBMIT_TURN, producer_app
from turnkeeper.exceptions import UnknownTurn
from turnkeeper_ops.dev.addresses import SIMULATOR_KEY
from turnkeeper_ops.services.ports import LOOPBACK
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

WITHIN = timedelta(seconds=30)
SECRET_WORDS = "the duchess hides her pearls"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
PRODUCER = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from turnkeeper import AsyncTurnkeeper, Turnkeeper

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)


def enqueue():
    with Turnkeeper() as keeper, tracer.start_as_current_span("blocking"):
        print(keeper.enqueue(None, sys.argv[1]).id)

async def enqueue_async():
    async with AsyncTurnkeeper() as keeper:
        with tracer.start_as_current_span("async"):
            print((await keeper.enqueue(None, sys.argv[1])).id)

tracer = trace.get_tracer("shop")
enqueue() if sys.argv[2] == "blocking" else asyncio.run(enqueue_async())
"""


@dataclass(slots=True)
class Collector:
    """Receives spans by OTLP over HTTP, and keeps every byte."""

    bodies: list[bytes] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        requests = map(ExportTraceServiceRequest.FromString, list(self.bodies))
        return [
            span
            for one in requests
            for by_resource in one.resource_spans
            for by_scope in by_resource.scope_spans
            for span in by_scope.spans
        ]

    def of(self, turn_id: UUID, *names: str) -> list[Span]:
        """Return the spans of a turn in the order in which they began, when there is one of each name."""

        def all_there() -> list[Span] | None:
            found = [span for span in self.spans if attributes(span).get("turnkeeper.turn.id") == str(turn_id)]
            found.sort(key=lambda span: span.start_time_unix_nano)
            return found if sorted(span.name for span in found) == sorted(names) else None

        found = poll(all_there, within=WITHIN)
        assert found is not None, [span.name for span in self.spans]
        return found


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield collector, f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()
        thread.join()


@dataclass(frozen=True, slots=True)
class Traced:
    site: Site
    collector: Collector

    def submit(self, text: str, *, traceparent: str | None, provider: str = "simulator") -> UUID:
        """Send a turn as a producer in any language does, with the header of its trace."""
        turn_id = uuid4()
        with producer_app(self.site.running.addresses.broker_url, "turnkeeper") as app:
            request = {"text": text, "provider": provider, "model": "sim-1"}
            headers = {"traceparent": traceparent}
            app.send_task(SUBMIT_TURN, args=[request], task_id=str(turn_id), headers=headers)
        return turn_id

    def ended(self, turn_id: UUID) -> TurnState:
        def state() -> TurnState | None:
            try:
                found = self.site.keeper.show(turn_id).state
            except UnknownTurn:
                return None
            return found if found.is_final else None

        found = poll(state, within=WITHIN)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    settings = ("lease_ttl_seconds = 3.0", "beat_seconds = 0.5")
    with pytest.MonkeyPatch.context() as patch, collecting() as (collector, url):
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        for site in open_site(tmp_path_factory.mktemp("traced"), lines=settings):
            yield Traced(site, collector)


@pytest.mark.parametrize("client", ["blocking", "async"])
def test_a_trace_goes_from_the_producer_through_the_worker_to_the_provider(traced: Traced, client: str) -> None:
    enqueued = traced.site.python(PRODUCER, f"Hello {SECRET_WORDS}", client)
    turn_id = UUID(enqueued.out.strip())

    enqueue, run, call = traced.collector.of(turn_id, "enqueue turn", "run turn", "chat sim-1")

    (request,) = (span for span in traced.collector.spans if span.name == client)
    assert {span.trace_id for span in (enqueue, run, call)} == {request.trace_id}
    assert (enqueue.parent_span_id, run.parent_span_id, call.parent_span_id) == (
        request.span_id,
        enqueue.span_id,
        run.span_id,
    )
    kinds = (Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_CLIENT)
    assert (enqueue.kind, run.kind, call.kind) == kinds


def test_a_call_is_described_by_the_conventions_for_generative_ai(traced: Traced) -> None:
    view = traced.site.run(f"Hello {SECRET_WORDS}", provider="simulator_messages")

    run, call = traced.collector.of(view.id, "run turn", "chat sim-1")

    told = attributes(call)
    usage = view.usage or {}
    assert (
        told.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic",
            "gen_ai.request.model": "sim-1",
            "gen_ai.response.id": view.attempts[0].response_id,
            "gen_ai.conversation.id": str(view.chat_id),
            "gen_ai.usage.input_tokens": usage["input_tokens"],
            "gen_ai.usage.output_tokens": usage["output_tokens"],
            "turnkeeper.chat.id": str(view.chat_id),
            "turnkeeper.provider": "simulator_messages",
            "turnkeeper.step": 1,
            "turnkeeper.attempt": 1,
            "turnkeeper.epoch": 1,
            "turnkeeper.outcome": "completed",
        }.items()
    )
    assert 0 < told["gen_ai.response.time_to_first_chunk"] < 10
    assert "error.type" not in told
    assert attributes(run)["turnkeeper.outcome"] == "completed"


def test_a_call_that_failed_says_of_what(traced: Traced) -> None:
    word = traced.site.script({"type": "status", "status": 503}, {"type": "status", "status": 401})
    view = traced.site.run(f"Try {SECRET_WORDS} {word}")

    _, first, _, second = traced.collector.of(view.id, *["run turn", "chat sim-1"] * 2)

    kinds = [attempt.kind for attempt in view.attempts]
    assert [attributes(span)["error.type"] for span in (first, second)] == kinds
    assert [attributes(span)["turnkeeper.outcome"] for span in (first, second)] == ["retried", "failed"]
    assert {first.status.code, second.status.code} == {Status.STATUS_CODE_ERROR}


def test_a_rescue_goes_on_in_the_trace_that_came_by_message(traced: Traced) -> None:
    word = traced.site.script({"type": "stall", "at": 2, "seconds": 600}, {"type": "answer"})
    turn_id = traced.submit(f"Go on {word}", traceparent=f"00-{TRACE}-{PARENT}-01")
    assert poll(lambda: len(traced.site.calls(turn_id)) == 1, within=WITHIN)

    traced.site.replace_worker()
    assert traced.ended(turn_id) is TurnState.COMPLETED

    # The killed worker took its own spans along.
    run, call = traced.collector.of(turn_id, "run turn", "chat sim-1")
    outcomes = [attempt.outcome for attempt in traced.site.keeper.show(turn_id).attempts]
    assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.COMPLETED]
    assert {run.trace_id.hex(), call.trace_id.hex()} == {TRACE}
    assert run.parent_span_id.hex() == PARENT
    assert attributes(run)["turnkeeper.epoch"] == 3


@pytest.mark.parametrize("nonsense", ["yesterday", f"00-{'0' * 32}-{PARENT}-01", "x" * 100_000])
def test_a_header_that_is_no_trace_costs_nobody_a_turn(traced: Traced, nonsense: str) -> None:
    turn_id = traced.submit("Hello", traceparent=nonsense)

    assert traced.ended(turn_id) is TurnState.COMPLETED
    run, _ = traced.collector.of(turn_id, "run turn", "chat sim-1")
    assert run.parent_span_id == b""


def test_no_word_of_a_chat_and_no_key_is_in_any_span(traced: Traced) -> None:
    views = [
        traced.site.run(f"Hello {SECRET_WORDS}"),
        traced.site.run(f"Try {SECRET_WORDS} sim:cut"),
        traced.site.run(f"Try {SECRET_WORDS}", provider="wrong_key"),
    ]
    for view in views:
        traced.collector.of(view.id, *["run turn", "chat sim-1"] * len(view.attempts))

    sent = b"".join(traced.collector.bodies)

    assert b"gen_ai.request.model" in sent
    for secret in (SECRET_WORDS, "duchess", "I have read", SIMULATOR_KEY, "sk-not-the-simulators-key"):
        assert secret.encode() not in sent
