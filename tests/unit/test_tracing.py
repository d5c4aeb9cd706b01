"""When traces are sent, and that a worker without OpenTelemetry lacks nothing."""

import subprocess
import sys

import pytest

from turnkeeper.tracing import enqueue_span, read_traceparent
from turnkeeper_worker.tracing import UNTRACED, open_tracer

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from turnkeeper_worker.tracing import UNTRACED, open_tracer
from turnkeeper.tracing import enqueue_span
assert open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}) is UNTRACED
with enqueue_span() as span:
    assert span.traceparent is None
"""


@pytest.mark.parametrize(
    ("environment", "is_traced"),
    [
        pytest.param({}, False, id="nobody says where to"),
        pytest.param(ENDPOINT, True, id="an endpoint for all"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True, id="one for it"
        ),
        pytest.param({"OTEL_TRACES_EXPORTER": "otlp"}, True, id="the default endpoint, asked for"),
        pytest.param(ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False, id="metrics only"),
        pytest.param(ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False, id="switched off"),
    ],
)
def test_traces_are_sent_where_somebody_says_where_to(environment: dict[str, str], is_traced: bool) -> None:
    tracer = open_tracer(environment)
    try:
        assert (tracer is not UNTRACED) == is_traced
    finally:
        tracer.close()


def test_a_worker_without_opentelemetry_says_what_to_install_and_runs_on() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False, timeout=60)

    assert ran.returncode == 0, ran.stderr
    assert "turnkeeper[otel]" in ran.stdout


def test_a_producer_that_does_not_trace_sends_no_trace() -> None:
    with enqueue_span() as span:
        assert span.traceparent is None


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="none"),
        pytest.param(7, id="a number"),
        pytest.param("", id="empty"),
        pytest.param(f"00-{'0' * 32}-b7ad6b7169203331-01", id="a trace of zeros"),
        pytest.param(f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", id="a span of zeros"),
        pytest.param("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", id="capital letters"),
        pytest.param("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", id="a line break"),
    ],
)
def test_a_header_that_cannot_be_used_is_none(header: object) -> None:
    assert read_traceparent(header) is None
