"""Wrappers off: from the body and the exceptions of a failure to layers, outermost first.

Gateways wrap providers' errors in objects, in strings of JSON, in Python's repr and in prose, SDKs wrap them once
more, and streams deliver them as events.  Every notation is read by `notation`; this module knows the shapes.
"""

import re
from collections.abc import Iterator, Mapping

from turnkeeper_worker.failures import notation
from turnkeeper_worker.failures.evidence import Evidence, Layer, fold
from turnkeeper_worker.failures.facts import ExceptionFact, Failure
from turnkeeper_worker.failures.statuses import anchored_status, is_error
from turnkeeper_worker.failures.words import starts_in

MAX_HAYSTACK = 1_500
"""Characters of text that phrases are matched against."""
MAX_SENTENCE = 4_096
"""Characters of one sentence that are kept."""
_MAX_DEPTH = 10
"""Wrappers inside one another; the deepest chain seen in public has five."""
_MAX_LAYERS = 48
_MAX_SIBLINGS = 8
"""Elements of a list that are looked at."""
_MAX_CAUSES = 16
"""Exceptions of a chain that are looked at."""

SENTENCE_KEYS = (
    "message", "msg", "error_message", "errorMessage", "Message", "error_description", "explanation", "title",
)  # fmt: skip
"""Where an error object says what happened, best first."""
CODE_KEYS = (
    "code", "type", "status", "reason", "error_code", "errorCode", "error_type", "__type", "limit_source",
    "category",
)  # fmt: skip
FINISH_KEYS = ("finish_reason", "finishReason", "native_finish_reason", "stop_reason", "stopReason", "blockReason")
STATUS_KEYS = ("status", "status_code", "statusCode", "code", "raw_status_code", "http_status", "httpStatus")
ORIGINAL_STATUS_KEYS = ("originalStatusCode", "original_status_code", "upstream_status")
INWARD_KEYS = (
    "error", "errors", "detail", "details", "response", "incomplete_details", "innererror", "inner_error", "cause",
    "body", "data", "metadata", "violations", "promptFeedback", "choices", "candidates", "delta", "stop_details",
    "messageStop", "output", "exception", "raw",
)  # fmt: skip
"""Where an error object holds another, in the order from wrapper to wrapped."""
SPOKEN_KEYS = frozenset({"error", "detail", "details", "raw", "body", "cause", "exception"})
"""Those of them that may hold a sentence or a code as plain text; elsewhere text may be a model's answer."""

_CODE_IN_TEXT = re.compile(
    r"""\b(?: [a-z0-9]{2,30}(?:_[a-z0-9]{1,30}){1,6}     # rate_limit_exceeded
             | [A-Z]{2,30}(?:_[A-Z]{2,30}){1,6}           # RESOURCE_EXHAUSTED
             | [A-Za-z]{4,60}(?:Exception|Error) )\b      # ThrottlingException""",
    re.VERBOSE,
)
_STATUS = re.compile(r"[45][0-9]{2}")
_URL = re.compile(r"\bhttps?://[^\s\"'<>)]{1,2000}")
_QUOTES = str.maketrans(dict.fromkeys("`\"'*\u2018\u2019\u201c\u201d"))
_BASES = frozenset({"builtins.object", "builtins.BaseException", "builtins.Exception"})


def describe(exc: BaseException) -> tuple[ExceptionFact, ...]:
    """Reduce *exc* and what caused it to facts, outermost first.

    Follows `__cause__`, else `__context__` unless it was suppressed; the first member stands for a group.
    """
    facts: list[ExceptionFact] = []
    seen: set[int] = set()
    following: BaseException | None = exc
    while following is not None and id(following) not in seen and len(facts) < _MAX_CAUSES:
        seen.add(id(following))
        facts.append(ExceptionFact(names=_names(type(following)), text=_text_of(following)))
        following = _cause(following)
    return tuple(facts)


def unwrap(failure: Failure) -> Evidence:
    """Take the wrappers off *failure*."""
    layers = tuple(_layers(failure))[:_MAX_LAYERS]
    inner_first = layers[::-1]
    verbatim = "\n".join(dict.fromkeys(layer.sentence for layer in inner_first if layer.sentence))[:MAX_HAYSTACK]
    in_fields = (code for layer in inner_first for code in layer.codes)
    text = " ".join(_URL.sub(" ", verbatim).translate(_QUOTES).lower().split())
    return Evidence(
        failure=failure,
        headers={str(name).lower(): str(value) for name, value in failure.headers.items()},
        layers=layers,
        codes={fold(code): code for code in reversed([*in_fields, *_CODE_IN_TEXT.findall(verbatim)])},
        types=tuple(dict.fromkeys(_leaf(name) for fact in failure.exceptions for name in fact.names)),
        text=text,
        starts=starts_in(text),
        verbatim=verbatim,
        status=_reported_status(failure, layers),
        decisive_status=_decisive_status(failure, inner_first),
    )


def _reported_status(failure: Failure, layers: tuple[Layer, ...]) -> int | None:
    if is_error(failure.status):
        return failure.status
    in_fields = (layer.status for layer in layers if layer.status)
    if failure.status is not None:
        # Inside a 200 stream a number in prose belongs to the prose; a field was meant as a status.
        return next(in_fields, None)
    return next(in_fields, None) or next(filter(None, (anchored_status(layer.sentence) for layer in layers)), None)


def _decisive_status(failure: Failure, inner_first: tuple[Layer, ...]) -> int | None:
    if original := next(filter(None, (layer.original_status for layer in inner_first)), None):
        return original
    in_stream = failure.status is not None and not is_error(failure.status)
    for layer in inner_first:
        if status := layer.status or (None if in_stream else anchored_status(layer.sentence)):
            return status
    return failure.status if is_error(failure.status) else None


def _layers(failure: Failure) -> Iterator[Layer]:
    """Yield the layers of the exceptions, then those of the body, which is the better witness."""
    body = list(_peel(_readable(failure.body), 0))
    texts = [fact.text for fact in failure.exceptions if fact.text]
    spoken = [layer for text in texts for layer in _peel(text[: notation.MAX_EMBEDDED], 0, curated=False)]
    # One word is no sentence: where the body is only "not-json", the exception tells more.
    is_bare = all(not layer.fields and " " not in layer.sentence for layer in body)
    return iter([*body, *spoken] if is_bare else [*spoken, *body])


def _readable(body: object) -> object:
    if isinstance(body, bytes | bytearray | memoryview):
        body = bytes(body[: notation.MAX_TEXT + 1]).decode("utf-8", "replace")
    if isinstance(body, str) and len(body) > notation.MAX_TEXT:
        return None
    return body


def _peel(value: object, depth: int, *, curated: bool = True) -> Iterator[Layer]:
    if depth >= _MAX_DEPTH:
        return
    if isinstance(value, str):
        yield from _peel_text(value, depth, curated=curated)
    elif isinstance(value, dict):
        yield from _peel_object(value, depth)
    elif isinstance(value, list | tuple):
        for element in value[:_MAX_SIBLINGS]:
            yield from _peel(element, depth + 1)


def _peel_text(text: str, depth: int, *, curated: bool) -> Iterator[Layer]:
    text = text.strip()
    if not text or len(text) > notation.MAX_TEXT:
        return
    if (value := notation.decode(text)) is not None:
        yield from _peel(value, depth + 1)
    elif (frames := notation.frames(text)) is not None:
        for frame in frames:
            yield from _peel(notation.decode(frame) or frame, depth + 1)
    elif title := notation.html_title(text):
        yield Layer(sentence=title, codes=("html_page",))
    else:
        yield from _peel_prose(text, depth, curated=curated)


def _peel_prose(text: str, depth: int, *, curated: bool) -> Iterator[Layer]:
    # One bare word is no sentence of the provider's: an exception's text beside it says more.
    yield Layer(sentence=text[:MAX_SENTENCE], curated=curated and " " in text)
    inner = [layer for value in notation.embedded(text) for layer in _peel(value, depth + 1)]
    if not inner and "{" in text and (pairs := notation.scrape(text)):
        inner = list(_peel(pairs, depth + 1))
    yield from inner


def _peel_object(value: dict[str, object], depth: int) -> Iterator[Layer]:
    sentence = _sentence(value)
    yield _layer(value, sentence)
    # The sentence is an object, or text with one inside; text that is only text has been said already.
    if not isinstance(sentence, str) or "{" in sentence:
        yield from _peel(sentence, depth + 1)
    for key in INWARD_KEYS:
        if key in value:
            yield from _peel_inward(key, value[key], depth)
    for key in [key for key in value if str(key).endswith("Exception")]:
        # Bedrock's streams name the exception by the member that holds it.
        yield Layer(codes=(str(key),))
        yield from _peel(value[key], depth + 1)


def _layer(value: Mapping[str, object], sentence: object) -> Layer:
    is_plain = isinstance(sentence, str) and notation.decode(sentence) is None
    retryable = value.get("retryable")
    return Layer(
        sentence=str(sentence)[:MAX_SENTENCE] if is_plain else "",
        codes=tuple(_codes(value)),
        status=_status(value, STATUS_KEYS),
        original_status=_status(value, ORIGINAL_STATUS_KEYS),
        retryable=retryable if isinstance(retryable, bool) else None,
        fields=value,
    )


def _peel_inward(key: str, value: object, depth: int) -> Iterator[Layer]:
    if isinstance(value, str):
        if key not in SPOKEN_KEYS:
            return
        if " " not in value.strip() and notation.decode(value) is None:
            yield Layer(codes=(value,))
            return
    yield from _peel(value, depth + 1)


def _sentence(value: Mapping[str, object]) -> object:
    """Return what an error object says: usually text, in some gateways an object of its own."""
    place = value.get("loc")
    if isinstance(place, list) and place and isinstance(value.get("msg"), str):
        return f"{place[-1]}: {value['msg']}"
    found = (value[key] for key in SENTENCE_KEYS if isinstance(value.get(key), str | dict | list))
    return next(found, "")


def _codes(value: Mapping[str, object]) -> Iterator[str]:
    for key in CODE_KEYS:
        code = value.get(key)
        if isinstance(code, str):
            yield code
    for key in FINISH_KEYS:
        if isinstance(reason := value.get(key), str):
            yield f"finish:{reason}"
    incomplete = value.get("incomplete_details")
    if isinstance(incomplete, dict) and isinstance(reason := incomplete.get("reason"), str):
        yield f"finish:{reason}"


def _status(value: Mapping[str, object], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        number = value.get(key)
        if isinstance(number, str) and _STATUS.fullmatch(number):
            number = int(number)
        if isinstance(number, int) and is_error(number):
            return number
    return None


def _names(cls: type) -> tuple[str, ...]:
    dotted = (f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
    return tuple(name for name in dotted if name not in _BASES)


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a foreign `__str__` may raise anything, and we are already handling a failure
        return ""


def _cause(exc: BaseException) -> BaseException | None:
    if isinstance(exc, BaseExceptionGroup):
        return exc.exceptions[0]
    if exc.__cause__ is not None or exc.__suppress_context__:
        return exc.__cause__
    return exc.__context__


def _leaf(dotted: str) -> str:
    return fold(dotted.rpartition(".")[2])
