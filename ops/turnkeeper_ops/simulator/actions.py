"""A step becomes a list of things to do on the connection.  Pure: no socket, no clock, no chance.

`play` does them; a test may simply read them.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import formatdate
from itertools import chain
from typing import TypeAlias, assert_never

from turnkeeper_ops.simulator.answers import compose
from turnkeeper_ops.simulator.scripts import (
    Answering,
    AnsweringStep,
    AnswerStep,
    CutStep,
    DripStep,
    EmptyStep,
    EndStep,
    ErrorEventStep,
    GoAwayStep,
    HtmlStep,
    IncompleteStep,
    LostAnchorStep,
    MalformedStep,
    Moment,
    ResetStep,
    ResetStreamStep,
    StallStep,
    StatusStep,
    Step,
)
from turnkeeper_ops.simulator.wire import Frame, FrameKind, Headers, PlainResponse, Prompt, Reply, Wire

HTML_PAGE = "<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"


@dataclass(frozen=True, slots=True)
class Head:
    """Send the status line and the headers; the body follows in HTTP chunks."""

    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Send:
    """Send bytes of the body."""

    data: bytes
    chunks: int = 0
    """How many chunks of the answer are complete with these bytes."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Flush, and send nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Commit:
    """The provider has finished the answer: store the response."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End the body as HTTP requires."""

    outcome: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection (FIN), whatever HTTP requires."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection (RST)."""


@dataclass(frozen=True, slots=True)
class ResetStream:
    """End the answer with RST_STREAM."""

    code: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """Say GOAWAY, and close the connection."""

    code: int


_ENDINGS: Mapping[str, Cut | Reset] = {"cut": Cut(), "reset": Reset()}

Ending: TypeAlias = Finish | Cut | Reset | ResetStream | GoAway
Action: TypeAlias = Head | Send | Wait | Commit | Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a step needs to know to be performed."""

    wire: Wire
    prompt: Prompt
    now: datetime
    """Aware; for the headers that hold a date."""
    chunk_delay_ms: float
    """For the steps that do not set their own."""


def perform(step: Step, scene: Scene) -> Iterator[Action]:
    """Yield what is to be done for *step*, in order."""
    match step:
        case StatusStep():
            return respond(_dated(scene.wire.plain(step), step, scene), outcome="status")
        case LostAnchorStep():
            return _lose_anchor(step, scene)
        case HtmlStep():
            page = HTML_PAGE.format(title=step.title)
            return respond(PlainResponse(status=200, body=page, headers={}), outcome="html")
        case EmptyStep():
            return _whole(scene.wire.frames(Reply()), AnswerStep(), scene)
        case Answering():
            return _answer(step, scene)
        case other:
            assert_never(other)


def respond(plain: PlainResponse, outcome: str) -> Iterator[Action]:
    """Send one response that is not an answer."""
    page = isinstance(plain.body, str)
    body = plain.body if isinstance(plain.body, str) else json.dumps(plain.body)
    content_type = "text/html" if page else "application/json"
    yield Head(plain.status, {"Content-Type": content_type} | dict(plain.headers))
    yield Send(body.encode())
    yield Finish(outcome)


def position(frames: Sequence[Frame], moment: Moment) -> int:
    """Return how many of *frames* are sent before *moment*.

    >>> event, chunk, terminal = Frame(b""), Frame(b"", FrameKind.CHUNK), Frame(b"", FrameKind.TERMINAL)
    >>> answer = [event, chunk, chunk, event, terminal]
    >>> [position(answer, moment) for moment in ("before_first_event", 0, 1, 2, 9, "before_terminal")]
    [0, 1, 2, 3, 4, 4]
    """
    if isinstance(moment, str):
        return len(frames) - 1 if moment == "before_terminal" else 0
    chunks = [index for index, frame in enumerate(frames) if frame.kind is FrameKind.CHUNK]
    if moment > len(chunks) or not chunks:
        return len(frames) - 1
    return chunks[moment - 1] + 1 if moment else chunks[0]


def _dated(plain: PlainResponse, step: StatusStep, scene: Scene) -> PlainResponse:
    """Add the `Retry-After` date that *step* asks for, never early."""
    if step.retry_after_date_seconds is None:
        return plain
    due = math.ceil(scene.now.timestamp() + step.retry_after_date_seconds)
    return replace(plain, headers={**plain.headers, "Retry-After": formatdate(due, usegmt=True)})


def _answer(step: AnsweringStep, scene: Scene) -> Iterator[Action]:  # noqa: PLR0911  # a table of steps
    frames = scene.wire.frames(compose(step, scene.prompt))
    match step:
        case ErrorEventStep():
            return _report_error(step, frames, scene)
        case CutStep() | ResetStep():
            return chain(_until(step.at, frames, step, scene), [_ENDINGS[step.type]])
        case ResetStreamStep():
            return chain(_until(step.at, frames, step, scene), [ResetStream(step.code)])
        case GoAwayStep():
            return chain(_until(step.at, frames, step, scene), [GoAway(step.code)])
        case EndStep():
            return _end(step, frames, scene)
        case StallStep():
            return _stall(step, frames, scene)
        case MalformedStep():
            return _garble(step, frames, scene)
        case DripStep():
            return _drip(step, frames, scene)
        case AnswerStep() | IncompleteStep():
            return _whole(frames, step, scene)
        case other:
            assert_never(other)


def _whole(frames: Sequence[Frame], step: AnswerStep | IncompleteStep, scene: Scene) -> Iterator[Action]:
    yield _head(scene)
    yield from _paced(frames, step, scene)
    yield Finish("incomplete" if isinstance(step, IncompleteStep) else "completed")


def _until(at: Moment, frames: Sequence[Frame], step: Answering, scene: Scene) -> Iterator[Action]:
    if at == "before_headers":
        return
    yield _head(scene)
    yield from _paced(frames[: position(frames, at)], step, scene)


def _end(step: EndStep, frames: Sequence[Frame], scene: Scene) -> Iterator[Action]:
    yield from _until(step.at, frames, step, scene)
    if step.at == "before_headers":
        yield _head(scene)
    if rest := scene.wire.loose_end(step.missing):
        yield Send(rest)
    yield Finish("ended_early")


def _report_error(
    step: ErrorEventStep, frames: Sequence[Frame], scene: Scene, outcome: str = "error_event"
) -> Iterator[Action]:
    if not scene.wire.streams:
        yield from respond(scene.wire.plain_error(step), outcome)
        return
    sent = position(frames, step.at)
    yield _head(scene)
    yield from _paced(frames[:sent], step, scene)
    yield from (Send(frame.data) for frame in scene.wire.error_frames(step, sent))
    yield Finish(outcome)


def _stall(step: StallStep, frames: Sequence[Frame], scene: Scene) -> Iterator[Action]:
    sent = position(frames, step.at)
    yield from _until(step.at, frames, step, scene)
    yield Wait(step.seconds)
    if step.at == "before_headers":
        yield _head(scene)
    yield from _paced(frames[sent:], step, scene, first=sent)
    yield Finish("completed")


def _garble(step: MalformedStep, frames: Sequence[Frame], scene: Scene) -> Iterator[Action]:
    sent = position(frames, step.at)
    yield _head(scene)
    yield from _paced(frames[:sent], step, scene)
    yield Send(scene.wire.torn_frame() if step.frame is None else step.frame.encode())
    yield from _paced(frames[sent:], step, scene, first=sent)
    yield Finish("malformed")


def _drip(step: DripStep, frames: Sequence[Frame], scene: Scene) -> Iterator[Action]:
    yield _head(scene)
    for frame in frames:
        if frame.kind is FrameKind.TERMINAL:
            yield Commit()
        for start in range(0, len(frame.data), step.bytes_per_write):
            end = start + step.bytes_per_write
            done = frame.kind is FrameKind.CHUNK and end >= len(frame.data)
            yield Wait(step.write_delay_ms / 1000)
            yield Send(frame.data[start:end], chunks=int(done))
    yield Finish("completed")


def _lose_anchor(step: LostAnchorStep, scene: Scene) -> Iterator[Action]:
    plain = scene.wire.lost_anchor(step)
    error = plain.body.get("error") if isinstance(plain.body, dict) else None
    if not (step.in_stream and scene.wire.streams and isinstance(error, dict)):
        return respond(plain, outcome="lost_anchor")
    code = error.get("code") or (error.get("details") or {}).get("error_code")
    event = ErrorEventStep(at="before_terminal", code=code, message=error["message"], error_type=error["type"])
    return _report_error(event, scene.wire.frames(Reply()), scene, outcome="lost_anchor")


def _head(scene: Scene) -> Head:
    return Head(200, {"Content-Type": scene.wire.content_type, "Cache-Control": "no-cache"})


def _paced(frames: Iterable[Frame], step: Answering, scene: Scene, *, first: int = 0) -> Iterator[Action]:
    """Send *frames*, each chunk after its delay; *first* is 0 where these frames open the answer."""
    usual = scene.chunk_delay_ms if step.chunk_delay_ms is None else step.chunk_delay_ms
    delay_ms = usual if first else step.first_delay_ms
    for frame in frames:
        if frame.kind is FrameKind.TERMINAL:
            # Stored before it is announced: the next request may arrive before this write returns.
            yield Commit()
        if frame.kind is FrameKind.START and step.queued_seconds:
            yield Wait(step.queued_seconds)
        if frame.kind is FrameKind.CHUNK:
            if delay_ms:
                yield Wait(delay_ms / 1000)
            delay_ms = usual
        yield Send(frame.data, chunks=int(frame.kind is FrameKind.CHUNK))
