"""What exceptions say: by class, by text, by both.  The texts are the tests' names."""

# ruff: noqa: E501 - a row of a table is a line, whatever a provider had to say

import ssl
from collections.abc import Callable
from datetime import UTC, datetime

import aiohttp
import httpx
import openai
import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified, ExceptionFact, Failure, classify, describe

Ask = Callable[..., Classified]


@pytest.mark.parametrize(
    "text",
    [
        "[Errno 104] Connection reset by peer",
        "[Errno -3] Temporary failure in name resolution",
        "dial tcp 10.0.0.1:443: connect: connection refused",
        "dial tcp: lookup api.openai.com: no such host",
        "read tcp 10.0.0.1:50321->1.2.3.4:443: use of closed network connection",
        "write tcp 10.0.0.1:503->1.2.3.4:443: write: broken pipe",
        "net/http: TLS handshake timeout",
        "net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
        "read ECONNRESET",
        "getaddrinfo ENOTFOUND api.openai.com",
        "AxiosError: socket hang up",
        "TypeError: fetch failed",
        "TypeError: terminated",
        "Premature close",
        "unexpected EOF",
        "Server disconnected without sending a response.",
        "peer closed connection without sending complete message body (incomplete chunked read)",
        "stream disconnected before completion: stream closed before response.completed",
        "openai responses stream closed before terminal event",
        "Request failed with status code 504",
        "unexpected status 503 Service Unavailable: upstream connect error",
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        "Request timed out or interrupted. This could be due to a network timeout, dropped connection, or request cancellation.",
    ],
)
def test_a_lost_connection_is_retried(ask: Ask, text: str) -> None:
    error = ask(text=text).error

    assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT, True)


@pytest.mark.parametrize(
    "cls",
    [
        "httpx.ReadError",
        "httpx.ConnectTimeout",
        "httpx.PoolTimeout",
        "httpcore.ReadError",
        "httpx2.RemoteProtocolError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "aiohttp.ServerDisconnectedError",
        "builtins.TimeoutError",
        "builtins.ConnectionResetError",
        "asyncio.exceptions.IncompleteReadError",
        "openai.APIConnectionError",
        "anthropic.APITimeoutError",
        "botocore.exceptions.EndpointConnectionError",
        "google.api_core.exceptions.DeadlineExceeded",
        "urllib3.exceptions.ProtocolError",
    ],
)
def test_a_transport_class_speaks_without_text(ask: Ask, cls: str) -> None:
    classified = ask(cls=cls)

    assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)
    assert classified.error.detail == cls


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        ("httpx.UnsupportedProtocol", "Request URL is missing an 'http://' or 'https://' protocol."),
        ("httpx.ConnectError", "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"),
        ("aiohttp.ClientConnectorCertificateError", "Cannot connect to host x:443 ssl:True"),
        ("", "tls: failed to verify certificate: x509: certificate signed by unknown authority"),
    ],
)  # fmt: skip
def test_our_own_settings_are_not_retried(ask: Ask, cls: str, text: str) -> None:
    error = ask(cls=cls, text=text).error

    assert not error.retryable
    assert error.kind in {ErrorKind.CONFIG, ErrorKind.GENERIC}


@pytest.mark.parametrize(
    "text",
    [
        "The api_key client option must be set either by passing api_key to the client or by setting the GROQ_API_KEY environment variable",
        "Missing credentials. Please pass an `api_key`, or set the `OPENAI_API_KEY` environment variable.",
        "Could not resolve authentication method. Expected either api_key or auth_token to be set.",
        "OpenAI API key is missing. Pass it using the 'apiKey' parameter.",
        "Did not find openai_api_key, please add an environment variable `OPENAI_API_KEY` which contains it",
        "Illegal header value b'Bearer '",
        "Unable to locate credentials",
    ],
)
def test_a_key_that_was_never_set_is_missing(ask: Ask, text: str) -> None:
    error = ask(text=text).error

    assert (error.kind, error.retryable) == (ErrorKind.MISSING_KEY, False)


@pytest.mark.parametrize(
    "text",
    [
        "400 bad request: user wrote 'the quota is unavailable, timeout'",
        "bad request: unknown user geoffrey",
        "requested 503 tokens but only 10 remain",
        "requested 429 items",
        "port 503 in use",
        "exit status 137",
        "stream ID 503; something",
        "IE 7 is not a browser",
        "took 500ms over HTTP/2",
    ],
)
def test_words_and_numbers_out_of_place_mean_nothing(ask: Ask, text: str) -> None:
    error = ask(text=text).error

    assert (error.kind, error.retryable) == (ErrorKind.GENERIC, False)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("overloaded: authentication proxy is saturated", ErrorKind.OVERLOADED),
        ("unauthorized: check billing", ErrorKind.USAGE_LIMIT),
        ("status 401: insufficient_quota", ErrorKind.USAGE_LIMIT),
        ("authentication failed: invalid model", ErrorKind.AUTH),
        ("forbidden: model not found", ErrorKind.CONFIG),
        ("status 403: context length exceeded", ErrorKind.CONTEXT_OVERFLOW),
        ("status 503: invalid model", ErrorKind.CONFIG),
        ("status 429: invalid model quota", ErrorKind.CONFIG),
        ("status 429: quota exceeded", ErrorKind.RATE_LIMIT),
        ("status 500: quota exceeded", ErrorKind.USAGE_LIMIT),
        ("http2: client conn is closed: status 429 Too Many Requests", ErrorKind.RATE_LIMIT),
        ("stream error: stream ID 5; INTERNAL_ERROR: status 401", ErrorKind.AUTH),
    ],
)
def test_of_two_causes_the_one_that_a_person_must_mend_is_named(ask: Ask, text: str, kind: ErrorKind) -> None:
    assert ask(text=text).error.kind is kind


@pytest.mark.parametrize(
    ("cls", "text", "kind"),
    [
        ("botocore.exceptions.EventStreamError", "An error occurred (throttlingException) when calling the ConverseStream operation: Too many tokens, please wait before trying again.", ErrorKind.RATE_LIMIT),
        ("botocore.exceptions.EventStreamError", "An error occurred (internalServerException) when calling the ConverseStream operation: The system encountered an unexpected error.", ErrorKind.GENERIC),
        ("google.genai.errors.ServerError", "503 UNAVAILABLE. {'error': {'code': 503, 'message': 'The model is overloaded.', 'status': 'UNAVAILABLE'}}", ErrorKind.OVERLOADED),
        ("google.genai.errors.ClientError", "429 RESOURCE_EXHAUSTED. {'error': {'code': 429, 'message': 'Resource has been exhausted (e.g. check quota).', 'status': 'RESOURCE_EXHAUSTED'}}", ErrorKind.RATE_LIMIT),
        ("litellm.InternalServerError", "litellm.InternalServerError: AnthropicException - Overloaded", ErrorKind.OVERLOADED),
        ("openai.RateLimitError", "Error code: 429", ErrorKind.RATE_LIMIT),
        ("anthropic.RateLimitError", "", ErrorKind.RATE_LIMIT),
        ("openai.InternalServerError", "", ErrorKind.GENERIC),
        ("aiohttp.ClientPayloadError", "Response payload is not completed: <TransferEncodingError: 400, message='Not enough data for satisfy transfer length header.'>", ErrorKind.TIMEOUT),
        ("json.decoder.JSONDecodeError", "Unterminated string starting at: line 1 column 30 (char 29)", ErrorKind.TIMEOUT),
    ],
)  # fmt: skip
def test_an_sdk_wraps_what_passes(ask: Ask, cls: str, text: str, kind: ErrorKind) -> None:
    classified = ask(cls=cls, text=text)

    assert (classified.error.kind, classified.error.retryable) == (kind, True), classified.rule


def test_first_event_and_silence_are_told_apart_in_text(ask: Ask) -> None:
    assert ask(text="Stream time to first token timeout").error.kind is ErrorKind.STARTUP_TIMEOUT
    assert (
        ask(text="stream disconnected: idle timeout waiting for SSE").error.kind
        is ErrorKind.STREAM_SILENCE_TIMEOUT
    )


def test_an_unknown_exception_is_generic_and_final(ask: Ask) -> None:
    error = ask(cls="builtins.KeyError", text="'choices'").error

    assert (error.kind, error.retryable) == (ErrorKind.GENERIC, False)


def judged(exc: BaseException) -> Classified:
    return classify(Failure(exceptions=describe(exc)), now=datetime.now(UTC))


@pytest.mark.parametrize(
    "exc",
    [
        httpx.ReadError(""),
        httpx.PoolTimeout(""),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        openai.APIConnectionError(request=httpx.Request("GET", "http://x")),  # type: ignore[arg-type]  # its own httpx
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_real_exceptions_of_the_transport_are_retried(exc: Exception) -> None:
    error = judged(exc).error

    assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT, True)


def test_a_subclass_is_known_by_its_base() -> None:
    class OurOwnReadError(httpx.ReadError): ...

    assert judged(OurOwnReadError("odd")).error.kind is ErrorKind.TIMEOUT


def test_describe_lists_names_over_the_mro_without_the_roots() -> None:
    (fact,) = describe(ConnectionResetError("x"))

    assert fact == ExceptionFact(
        names=("builtins.ConnectionResetError", "builtins.ConnectionError", "builtins.OSError"), text="x"
    )


def test_describe_follows_the_cause_before_the_context() -> None:
    outer, cause, context = ValueError("outer"), OSError("cause"), KeyError("context")
    outer.__context__ = context
    assert [fact.text for fact in describe(outer)] == ["outer", "'context'"]

    outer.__cause__ = cause
    assert [fact.text for fact in describe(outer)] == ["outer", "cause"]


def test_describe_leaves_out_a_suppressed_context() -> None:
    outer = ValueError("outer")
    outer.__context__ = KeyError("context")
    outer.__suppress_context__ = True

    assert [fact.text for fact in describe(outer)] == ["outer"]


def test_describe_ends_at_a_circle() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one

    assert [fact.text for fact in describe(one)] == ["one", "two"]


def test_describe_ends_in_a_long_chain() -> None:
    exc: Exception = ValueError("0")
    for number in range(1, 100):
        following = ValueError(str(number))
        following.__cause__ = exc
        exc = following

    assert len(describe(exc)) == 16


def test_describe_opens_a_group() -> None:
    facts = describe(ExceptionGroup("many", [httpx.ReadTimeout("late"), ValueError("x")]))

    assert [fact.text for fact in facts] == ["many (2 sub-exceptions)", "late"]


def test_describe_survives_an_exception_that_cannot_be_printed() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    (fact,) = describe(Mute())

    assert fact.text == ""
    assert fact.names[0].endswith("Mute")


def test_the_cause_decides_where_the_wrapper_says_nothing() -> None:
    wrapper = RuntimeError("could not answer")
    wrapper.__cause__ = httpx.ConnectError("[Errno 111] Connection refused")

    classified = judged(wrapper)

    assert classified.error.kind is ErrorKind.TIMEOUT
    assert classified.error.detail == "[Errno 111] Connection refused"
