"""The scripts that are there from the start, for people to type into a chat: `Tell me of rivers sim:cut`."""

from turnkeeper_ops.simulator.scripts import (
    AnswerStep,
    Complaint,
    CutStep,
    DripStep,
    EmptyStep,
    EndStep,
    ErrorEventStep,
    ErrorShape,
    FunctionCall,
    GoAwayStep,
    HtmlStep,
    IncompleteStep,
    LostAnchorStep,
    MalformedStep,
    Missing,
    ResetStep,
    ResetStreamStep,
    Retrieval,
    Script,
    Spelling,
    StallStep,
    StatusStep,
    Step,
)


def ready_made_scripts() -> dict[str, Script]:
    """Return the ready-made scripts by name: what can be retried, what cannot, odd answers."""
    return _retried() | _terminal() | _answers() | _endings() | _background()


def _retried() -> dict[str, Script]:
    return {
        "rate-limited": _script("429 with Retry-After: 2.", _refusal(429, {"Retry-After": "2"})),
        "overloaded": _script("503, saturated.", StatusStep(status=503)),
        "server-error": _script("500.", StatusStep(status=500)),
        "bad-gateway": _script("502 with a proxy's page.", StatusStep(status=502)),
        "cut": _script("The connection closes in mid-answer.", CutStep(at=4)),
        "reset": _script("The connection is reset in mid-answer.", ResetStep(at=4)),
        "reset-stream": _script("RST_STREAM in mid-answer, over HTTP/2.", ResetStreamStep(at=4)),
        "go-away": _script("GOAWAY in mid-answer, over HTTP/2.", GoAwayStep(at=4)),
        "unfinished": _script("The stream ends without its terminal event.", EndStep()),
        "malformed": _script("A frame cannot be decoded.", MalformedStep(at=4)),
        "html": _script("A web page under status 200.", HtmlStep()),
        "error-event": _script("An error event in mid-answer.", ErrorEventStep(at=4)),
        "failed": _script(
            "response.failed in mid-answer.", ErrorEventStep(at=4, shape=ErrorShape.RESPONSE_FAILED)
        ),
        "lost-anchor": _script("The chain is broken at the provider.", LostAnchorStep()),
        "lost-seal": _script(
            "The provider cannot read what it sealed.",
            LostAnchorStep(spelling=Spelling.INVALID_ENCRYPTED_CONTENT, even_unchained=True),
        ),
        "stall": _script("Nothing at all for an hour.", StallStep()),
        "silence": _script("Silence in mid-answer for an hour.", StallStep(at=4)),
        "flaky": _script(
            "503, then cut, then reset, then the answer.", StatusStep(status=503), CutStep(), ResetStep()
        ),
        "down": Script(about="503 for ever.", steps=(StatusStep(status=503),), repeat_last=True),
    }


def _terminal() -> dict[str, Script]:
    return {
        "quota": _script(
            "429: the credit is used up.",
            StatusStep(status=429, complaint=Complaint.QUOTA),
        ),
        "unauthorized": _script("401: the key is refused.", StatusStep(status=401)),
        "context-overflow": _script(
            "400: the prompt does not fit.",
            StatusStep(status=400, complaint=Complaint.CONTEXT_OVERFLOW),
        ),
        "content-filter": _script(
            "Refused under the provider's policy, with nothing visible.",
            IncompleteStep(at=0, reason="content_filter"),
        ),
    }


def _answers() -> dict[str, Script]:
    return {
        "slow": _script("One chunk every half second.", AnswerStep(chunk_delay_ms=500)),
        "drip": _script("A few bytes at a time.", DripStep()),
        "truncated": _script("Stopped by max_output_tokens.", IncompleteStep(at=4)),
        "empty": _script("Completed, with no output.", EmptyStep()),
        "novel": Script(
            about="With what only a newer version of the API would send.",
            steps=(AnswerStep(novel=True),),
            repeat_last=True,
        ),
        "reasoning": _script("With a reasoning summary.", AnswerStep(reasoning="The user wants an answer.")),
        "search": _script("With a web search.", AnswerStep(search="turnkeeper")),
        "tool": _script(
            "Asks for get_weather first.",
            AnswerStep(calls=(FunctionCall(name="get_weather", arguments={"city": "Oslo"}),)),
        ),
    }


def _endings() -> dict[str, Script]:
    return {
        "no-mark": _script(
            "The reason to end comes, the mark of the end does not.", EndStep(missing=Missing.DONE)
        ),
        "no-reason": _script("The end comes without its reason.", EndStep(missing=Missing.REASON)),
        "paused": _script("Stopped in the middle, to be continued.", IncompleteStep(at=4, reason="pause_turn")),
        "paused-search": _script(
            "Stopped in the middle of a search, to be continued.",
            IncompleteStep(search="turnkeeper", in_search=True, reason="pause_turn"),
        ),
        "refused": _script("The model refuses after a few words.", IncompleteStep(at=4, reason="refusal")),
    }


def _background() -> dict[str, Script]:
    return {
        "stuck": _script("A background response stays queued for ever.", AnswerStep(queued_seconds=86_400)),
        "too-old": _script(
            "Cut in mid-answer; the background response cannot be streamed any more, only polled.",
            CutStep(at=4, resumable=False),
        ),
        "gone": _script(
            "Cut in mid-answer; the background response is not found any more.",
            CutStep(at=4, retrieval=Retrieval.GONE),
        ),
        "unavailable-once": _script(
            "Cut in mid-answer; the first request for the background response fails.",
            CutStep(at=4, retrieval=Retrieval.UNAVAILABLE_ONCE),
        ),
    }


def _script(about: str, *steps: Step) -> Script:
    return Script(about=about, steps=steps)


def _refusal(status: int, headers: dict[str, str]) -> StatusStep:
    return StatusStep(status=status, headers=headers)
