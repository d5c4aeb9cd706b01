"""The table of faults: what becomes of a turn that each of the simulator's faults strikes, on each API."""

from collections.abc import Iterator
from typing import Any

from turnkeeper import ErrorKind
from turnkeeper.messages import Reasoning, ToolCall, WebSearch
from turnkeeper_ops.simulator.scripts import ErrorShape, Moment

from .fault_rows import MID, SLOWLY, Ending, Failed, Row, passes, row, seen, stands, stays, unseen


def statuses() -> Iterator[Row]:
    """A request that is refused with a status."""
    outright: dict[int, tuple[Ending, Ending]] = {
        400: (stays(unseen(ErrorKind.GENERIC)),) * 2,
        401: (stays(unseen(ErrorKind.AUTH)),) * 2,
        402: (stays(unseen(ErrorKind.USAGE_LIMIT)),) * 2,
        # OpenAI's 403 names the model.
        403: (stays(unseen(ErrorKind.CONFIG)), stays(unseen(ErrorKind.AUTH))),
        404: (stays(unseen(ErrorKind.GENERIC)),) * 2,
        408: (passes(unseen(ErrorKind.TIMEOUT)),) * 2,
        # OpenAI's 409 says that the conversation is locked.
        409: (passes(unseen(ErrorKind.OVERLOADED)), passes(unseen(ErrorKind.GENERIC))),
        # OpenAI's 413 is the page of a proxy.
        413: (stays(unseen(ErrorKind.CONFIG)), stays(unseen(ErrorKind.CONTEXT_OVERFLOW))),
        422: (stays(unseen(ErrorKind.GENERIC)),) * 2,
        500: (passes(unseen(ErrorKind.GENERIC)),) * 2,
        502: (passes(unseen(ErrorKind.TIMEOUT)),) * 2,
        503: (passes(unseen(ErrorKind.OVERLOADED)),) * 2,
        504: (passes(unseen(ErrorKind.TIMEOUT)),) * 2,
        529: (passes(unseen(ErrorKind.OVERLOADED)),) * 2,
    }
    for status, (openai, anthropic) in outright.items():
        yield row(f"status {status}", {"type": "status", "status": status}, ending=openai, messages=anthropic)


def complaints() -> Iterator[Row]:
    quota = {"type": "status", "status": 429, "complaint": "quota"}
    yield row("the quota is used up", quota, ending=stays(unseen(ErrorKind.USAGE_LIMIT)))
    overflow = {"type": "status", "status": 400, "complaint": "context_overflow"}
    yield row("the prompt does not fit", overflow, ending=stays(unseen(ErrorKind.CONTEXT_OVERFLOW)))
    moved = {
        "type": "status",
        "status": 302,
        "headers": {"Location": "/login"},
        "body": "<html><head><title>302 Found</title></head></html>",
    }
    yield row("a redirect", moved, ending=stays(unseen(ErrorKind.GENERIC)))
    page = {"type": "status", "status": 503, "body": "<html><title>503 Service Unavailable</title></html>"}
    yield row("a page under status 503", page, ending=passes(unseen(ErrorKind.TIMEOUT)))
    final = {"type": "status", "status": 500, "headers": {"x-should-retry": "false"}}
    yield row("a 500 that forbids a retry", final, ending=stays(unseen(ErrorKind.GENERIC)))


def hints() -> Iterator[Row]:
    """A wait that the provider asks for."""
    limited, throttled = passes(unseen(ErrorKind.RATE_LIMIT)), {"type": "status", "status": 429}
    yield row("status 429", throttled, ending=limited, wait_ms=1000)
    headers = {"Retry-After": "1"}
    yield row("429, in seconds", throttled | {"headers": headers}, ending=limited, wait_ms=1000)
    headers = {"Retry-After-Ms": "1200"}
    yield row("429, in milliseconds", throttled | {"headers": headers}, ending=limited, wait_ms=1200)
    dated = throttled | {"headers": {}, "retry_after_date_seconds": 1.5}
    yield row("429, until a date", dated, ending=limited, wait_ms=1000)
    too_long = throttled | {"headers": {"Retry-After": "86400"}}
    yield row("429, until tomorrow", too_long, ending=stays(unseen(ErrorKind.RATE_LIMIT)))
    saturated = {"type": "status", "status": 503, "headers": {"Retry-After": "1"}}
    yield row("503, in seconds", saturated, ending=passes(unseen(ErrorKind.OVERLOADED)), wait_ms=1000)
    told = _error("rate_limit_exceeded", "Rate limit reached. Please try again in 1.2s.", at=MID)
    yield row("a wait told in the stream", told, ending=passes(seen(ErrorKind.RATE_LIMIT)), wait_ms=1200)


def error_events() -> Iterator[Row]:
    """An error inside the stream: in every shape, and at every moment."""
    told = {
        "server error": (
            _error("server_error", "The server had an error while processing your request."),
            passes(seen(ErrorKind.GENERIC)),
        ),
        "rate limit": (
            _error("rate_limit_exceeded", "Rate limit reached for requests per min: Limit 500, Used 500."),
            passes(seen(ErrorKind.RATE_LIMIT)),
        ),
        "overload": (
            _error("server_is_overloaded", "Our servers are currently overloaded."),
            passes(seen(ErrorKind.OVERLOADED)),
        ),
        "overflow": (
            _error("context_length_exceeded", "Your input exceeds the context window of this model."),
            stays(seen(ErrorKind.CONTEXT_OVERFLOW)),
        ),
        "quota": (
            _error("insufficient_quota", "You exceeded your current quota, please check your billing details."),
            stays(seen(ErrorKind.USAGE_LIMIT)),
        ),
        "policy": (
            _error("invalid_prompt", "Your prompt was flagged as potentially violating our usage policy."),
            stays(seen(ErrorKind.CONTENT_FILTER)),
        ),
    }
    # A router tells the provider's error as a status of its own.
    routed = {ErrorShape.RESPONSE_FAILED, ErrorShape.FINISH_REASON}
    for name, (step, ending) in told.items():
        for shape in ErrorShape:
            at_router = passes(seen(ErrorKind.TIMEOUT)) if name == "server error" and shape in routed else ending
            struck = step | {"at": MID, "shape": shape}
            yield row(f"{name} in the stream, {shape}", struck, ending=ending, chat=at_router)
    for at, sight in _moments():
        step = _error("server_error", "The server had an error.", at=at)
        yield row(f"an error event, {at}", step, ending=passes(Failed(ErrorKind.GENERIC, seen=sight)))


def broken_connections() -> Iterator[Row]:
    """A connection that breaks, at every moment; over HTTP/1.1 a reset stream and a farewell are that too."""
    for fault in ("cut", "reset", "reset_stream", "go_away"):
        for at, sight in _moments():
            ending = passes(Failed(ErrorKind.TIMEOUT, seen=sight))
            yield row(f"{fault}, {at}", {"type": fault, "at": at, **SLOWLY}, ending=ending)


def early_ends() -> Iterator[Row]:
    """A body that ends as HTTP requires, and too early."""
    for at, sight in _moments():
        ending = passes(Failed(ErrorKind.TIMEOUT, seen=sight))
        yield row(f"end, {at}", {"type": "end", "at": at}, ending=ending)
    truncated = passes(seen(ErrorKind.TIMEOUT))
    # Chat Completions end in two ways, and each of them is enough.
    yield row("end without its mark", {"type": "end", "missing": "done"}, ending=truncated, chat=stands())
    yield row("end without its reason", {"type": "end", "missing": "reason"}, ending=truncated, chat=stands())


def stalls() -> Iterator[Row]:
    """Silence: longer than the worker's patience, and shorter."""
    late, silent = ErrorKind.STARTUP_TIMEOUT, ErrorKind.STREAM_SILENCE_TIMEOUT
    for at, sight in _moments():
        kind = late if isinstance(at, str) and at != "before_terminal" else silent
        stall = {"type": "stall", "at": at}
        yield row(f"stall, {at}", stall, ending=passes(Failed(kind, seen=sight)), is_hasty=True)
    for at in ("before_headers", MID):
        yield row(f"a short stall, {at}", {"type": "stall", "at": at, "seconds": 0.3}, ending=stands())


def frames() -> Iterator[Row]:
    """Bytes that come in pieces, or make no sense."""
    broken = passes(seen(ErrorKind.TIMEOUT))
    yield row("a byte at a time", {"type": "drip", "bytes_per_write": 1, "write_delay_ms": 0}, ending=stands())
    yield row(
        "a web page under 200", {"type": "html", "title": "Sign in"}, ending=passes(unseen(ErrorKind.TIMEOUT))
    )
    for at, sight in _moments():
        ending = passes(Failed(ErrorKind.TIMEOUT, seen=sight))
        yield row(f"malformed, {at}", {"type": "malformed", "at": at}, ending=ending)
    yield row("a frame that is no JSON", _frame("data: {'type': 1}\n\n"), ending=broken)
    yield row("a frame that is no object", _frame('data: ["type"]\n\n'), ending=broken)
    yield row("a frame that holds no number", _frame('data: {"type": NaN}\n\n'), ending=broken)
    yield row(
        "a mark of the end in the middle", _frame("data: [DONE]\n\n"), ending=broken, chat=stands(chunks=MID)
    )
    yield row("a comment", _frame(": keep-alive\n\n"), ending=stands())
    yield row("an event nobody knows", _frame('event: new\ndata: {"type": "new"}\n\n'), ending=stands())


def early_stops() -> Iterator[Row]:
    """An answer that stops early and says why."""
    endings: dict[str, tuple[str, str, ErrorKind, ErrorKind]] = {
        # reason: the finish at OpenAI and at Anthropic, and the kinds of an answer that says nothing.
        "max_output_tokens": (
            "max_output_tokens",
            "max_output_tokens",
            ErrorKind.GENERIC,
            ErrorKind.GENERIC,
        ),
        "content_filter": ("content_filter", "refusal", ErrorKind.CONTENT_FILTER, ErrorKind.CONTENT_FILTER),
        "refusal": ("content_filter", "refusal", ErrorKind.CONTENT_FILTER, ErrorKind.CONTENT_FILTER),
        "context_window": (
            "max_output_tokens",
            "model_context_window_exceeded",
            ErrorKind.GENERIC,
            ErrorKind.CONTEXT_OVERFLOW,
        ),
    }
    for reason, (openai, anthropic, nothing_said, nothing_at_anthropic) in endings.items():
        yield row(
            f"stopped by {reason}",
            {"type": "incomplete", "at": MID, "reason": reason},
            ending=stands(openai, chunks=MID),
            messages=stands(anthropic, chunks=MID),
        )
        yield row(
            f"stopped by {reason} at once",
            {"type": "incomplete", "at": 0, "reason": reason},
            ending=stays(unseen(nothing_said)),
            messages=stays(unseen(nothing_at_anthropic)),
        )


def pauses() -> Iterator[Row]:
    """A turn of the model's that is to be continued; only Anthropic has it."""
    yield row(
        "paused",
        ending=stands("max_output_tokens", chunks=4),
        messages=Ending(said=(4, None)),
    )
    pause = {"type": "incomplete", "at": MID, "reason": "pause_turn"}
    yield row(
        "paused twice",
        pause,
        pause,
        ending=stands("max_output_tokens", chunks=MID),
        messages=Ending(said=(MID, MID, None)),
    )
    yield row(
        "paused-search",
        ending=stays(unseen(ErrorKind.GENERIC)),
        messages=Ending(said=(0, None), parts=(WebSearch,)),
    )
    yield row(
        "paused before a word",
        pause | {"at": 0},
        ending=stays(unseen(ErrorKind.GENERIC)),
        messages=passes(unseen(ErrorKind.GENERIC)),
    )


def answers() -> Iterator[Row]:
    """Answers without a fault, and answers that hold something else."""
    yield row("a plain answer", {"type": "answer"}, ending=stands())
    pieces = {"type": "answer", "chunk_chars": 1, "chunk_delay_ms": 1, "first_delay_ms": 200}
    yield row("an answer in single letters, after a while", pieces, ending=stands())
    yield row("empty", ending=passes(unseen(ErrorKind.GENERIC)))
    yield row("nothing", {"type": "empty"}, {"type": "empty"}, ending=passes(*[unseen(ErrorKind.GENERIC)] * 2))
    yield row("reasoning", ending=stands(parts=(Reasoning,)))
    search = stands(parts=(WebSearch,))
    redacted = {"type": "answer", "reasoning": "Hm", "redacted": True}
    yield row("reasoning that is not shown", redacted, ending=stands(parts=(Reasoning,)), chat=stands())
    yield row("search", ending=stands(parts=(Reasoning, WebSearch)), chat=stands(), messages=search)
    yield row("novel", ending=stands())
    everything = {"type": "answer", "novel": True, "reasoning": "Hm", "search": "rivers"}
    yield row(
        "novelties around everything",
        everything,
        ending=stands(parts=(Reasoning, WebSearch)),
        chat=stands(parts=(Reasoning,)),
    )
    calling = stands("tool_calls", chunks=0, parts=(ToolCall,))
    yield row("tool", ending=calling)
    half = {"type": "incomplete", "at": 1, "calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]}
    yield row("half a tool call", half, ending=stays(unseen(ErrorKind.GENERIC)))
    lost = {"type": "lost_anchor", "even_unchained": True}
    yield row("a lost anchor of a request without one", lost, ending=stays(unseen(ErrorKind.GENERIC)))


def ready_made() -> Iterator[Row]:
    """The scripts that people type; `_moments` and the others above have them with every variant."""
    broken = passes(seen(ErrorKind.TIMEOUT))
    for name in ("cut", "reset", "reset-stream", "go-away", "unfinished", "malformed"):
        yield row(name, ending=broken)
    yield row("no-mark", ending=broken, chat=stands())
    yield row("no-reason", ending=broken, chat=stands())
    yield row("error-event", ending=passes(seen(ErrorKind.GENERIC)))
    yield row("failed", ending=passes(seen(ErrorKind.GENERIC)), chat=broken)
    yield row("rate-limited", ending=passes(unseen(ErrorKind.RATE_LIMIT)), wait_ms=2000)
    yield row("overloaded", ending=passes(unseen(ErrorKind.OVERLOADED)))
    yield row("server-error", ending=passes(unseen(ErrorKind.GENERIC)))
    yield row("bad-gateway", ending=passes(unseen(ErrorKind.TIMEOUT)))
    yield row("html", ending=passes(unseen(ErrorKind.TIMEOUT)))
    yield row("stall", ending=passes(unseen(ErrorKind.STARTUP_TIMEOUT)), is_hasty=True)
    yield row("silence", ending=passes(seen(ErrorKind.STREAM_SILENCE_TIMEOUT)), is_hasty=True)
    flaky = passes(unseen(ErrorKind.OVERLOADED), *[seen(ErrorKind.TIMEOUT)] * 2)
    yield row("flaky", ending=flaky)
    yield row("down", ending=stays(*[unseen(ErrorKind.OVERLOADED)] * 12))
    yield row("quota", ending=stays(unseen(ErrorKind.USAGE_LIMIT)))
    yield row("unauthorized", ending=stays(unseen(ErrorKind.AUTH)))
    yield row("context-overflow", ending=stays(unseen(ErrorKind.CONTEXT_OVERFLOW)))
    yield row("content-filter", ending=stays(unseen(ErrorKind.CONTENT_FILTER)))
    yield row("truncated", ending=stands("max_output_tokens", chunks=4))
    yield row("refused", ending=stands("content_filter", chunks=4), messages=stands("refusal", chunks=4))
    yield row("lost-seal", ending=passes(Failed(ErrorKind.GENERIC, seen=False, heals=True)))
    # A first turn has no anchor to lose.
    for name in ("lost-anchor", "slow", "drip"):
        yield row(name, ending=stands())


def _moments() -> list[tuple[Moment, bool]]:
    """When a fault strikes, and whether a part of the answer is out by then."""
    return [
        ("before_headers", False),
        ("before_first_event", False),
        (0, False),
        (MID, True),
        ("before_terminal", True),
    ]


def _error(code: str, message: str, **rest: Any) -> dict[str, Any]:
    kind = "server_error" if code == "server_error" else "invalid_request_error"
    return {"type": "error_event", "code": code, "message": message, "error_type": kind, **rest}


def _frame(frame: str) -> dict[str, Any]:
    return {"type": "malformed", "at": MID, "frame": frame}


TABLE = [
    *statuses(),
    *complaints(),
    *hints(),
    *error_events(),
    *broken_connections(),
    *early_ends(),
    *stalls(),
    *frames(),
    *early_stops(),
    *pauses(),
    *answers(),
    *ready_made(),
]
