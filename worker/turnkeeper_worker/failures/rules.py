"""The order of evidence: which question is asked first, and which answer stands.

1. Our own signals: we know better than any text why we stopped.
2. A broken chain, which has a remedy of its own.
3. Decisive codes: machine words that say exactly what happened.
4. Deciding numbers: a request larger than its whole window, a quota of a day.
5. Sentences: what providers say where their codes are silent or wrong.
6. Firm codes, which name a family, and codes kindred to known ones.
7. The status of the innermost response.
8. HTTP/2 resets, by code and sender.
9. Words about the network: any sentence may mention a timeout.
10. Soft codes and exception classes, which count only without a status.
11. Late signals: how the caller saw the stream end.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, TypeAlias

from turnkeeper.errors import ErrorKind, Situation
from turnkeeper_worker.failures import chains, codes, http2, numbers
from turnkeeper_worker.failures.codes import CodeRule
from turnkeeper_worker.failures.evidence import Evidence, fold
from turnkeeper_worker.failures.facts import Signal
from turnkeeper_worker.failures.gates import PhraseRule, PhraseTable
from turnkeeper_worker.failures.phrasebook import PHRASES
from turnkeeper_worker.failures.transport import NETWORK
from turnkeeper_worker.failures.verdict import Verdict
from turnkeeper_worker.failures.words import first_found, phrases

Rule: TypeAlias = Callable[[Evidence], Verdict | None]

OWN_SIGNALS: Final = {
    Signal.MISSING_KEY: (ErrorKind.MISSING_KEY, False, None),
    Signal.PROVIDER_DISABLED: (ErrorKind.PROVIDER_DISABLED, False, None),
    Signal.OWN_LIMIT: (ErrorKind.USAGE_LIMIT, False, Situation.OWN_LIMIT),
    Signal.UNKNOWN_PROVIDER: (ErrorKind.CONFIG, False, Situation.UNKNOWN_PROVIDER),
    Signal.KEY_RESTS: (ErrorKind.RATE_LIMIT, True, None),
    Signal.MODEL_RESTS: (ErrorKind.OVERLOADED, True, None),
    Signal.STARTUP_TIMEOUT: (ErrorKind.STARTUP_TIMEOUT, True, None),
    Signal.STREAM_SILENCE_TIMEOUT: (ErrorKind.STREAM_SILENCE_TIMEOUT, True, None),
    Signal.DEADLINE: (ErrorKind.TIMEOUT, False, Situation.DEADLINE),
    Signal.CONTENT_FILTER: (ErrorKind.CONTENT_FILTER, False, None),
    Signal.CANCELLED: (ErrorKind.GENERIC, False, Situation.CANCELLED),
    # Before the words of the refusal, which are those for a model or an anchor that is not found.
    Signal.RESPONSE_GONE: (ErrorKind.TIMEOUT, True, Situation.RESPONSE_GONE),
}

LATE_SIGNALS: Final = {
    Signal.STREAM_TRUNCATED: (ErrorKind.TIMEOUT, True, None),
    Signal.INCOMPLETE_JSON: (ErrorKind.TIMEOUT, True, None),
    Signal.HTTP2_STREAM_RESET: (ErrorKind.TIMEOUT, True, None),
    Signal.HTTP2_GOAWAY: (ErrorKind.TIMEOUT, True, None),
    Signal.PROVIDER_CANCELLED: (ErrorKind.TIMEOUT, True, None),
    Signal.EMPTY_OUTPUT: (ErrorKind.GENERIC, True, Situation.EMPTY),
    # The request had been accepted: what goes wrong after that, and gives no reason, is rarely its fault.
    Signal.SSE_ERROR_EVENT: (ErrorKind.GENERIC, True, None),
}

STATUSES: Final = {
    401: (ErrorKind.AUTH, False),
    402: (ErrorKind.USAGE_LIMIT, False),
    403: (ErrorKind.AUTH, False),
    405: (ErrorKind.CONFIG, False),
    407: (ErrorKind.CONFIG, False),
    408: (ErrorKind.TIMEOUT, True),
    409: (ErrorKind.GENERIC, True),
    410: (ErrorKind.CONFIG, False),
    413: (ErrorKind.CONTEXT_OVERFLOW, False),
    415: (ErrorKind.CONFIG, False),
    424: (ErrorKind.GENERIC, True),
    425: (ErrorKind.TIMEOUT, True),
    429: (ErrorKind.RATE_LIMIT, True),
    451: (ErrorKind.CONTENT_FILTER, False),
    498: (ErrorKind.OVERLOADED, True),  # Groq: flex capacity exceeded
    499: (ErrorKind.TIMEOUT, True),  # nginx: the client went away, and it was not us
    500: (ErrorKind.GENERIC, True),
    501: (ErrorKind.GENERIC, False),
    502: (ErrorKind.TIMEOUT, True),
    503: (ErrorKind.TIMEOUT, True),
    504: (ErrorKind.TIMEOUT, True),
    505: (ErrorKind.GENERIC, False),
    529: (ErrorKind.OVERLOADED, True),
}
"""A status that is not here and not of `CLOUDFLARE_EDGE`: 5xx retry, 4xx do not."""
CLOUDFLARE_EDGE: Final = range(520, 531)
"""Failures between Cloudflare and the origin."""

_DECISIVE = codes.index(codes.DECISIVE)
_FIRM = codes.index(codes.FIRM)
_SOFT = codes.index(codes.SOFT)
_STEMS = tuple((rule, tuple(map(fold, rule.codes.split()))) for rule in codes.KINDRED)
_OWN_QUOTA = phrases("exceeded your current quota")
_GOOGLE = phrases("generativelanguage | google* | gemini* | vertex* | quota metric")


def judge(evidence: Evidence) -> Verdict:
    """Return the answer of the first rule that has one; without any, a terminal `generic`."""
    for rule in RULES:
        if (verdict := rule(evidence)) is not None:
            return verdict
    return Verdict(kind=ErrorKind.GENERIC, retryable=False, rule="unknown")


def own_signal(evidence: Evidence) -> Verdict | None:
    """What we did ourselves.  Only an error response outranks our cancel: then there was more to know."""
    signal = evidence.failure.signal
    if signal is Signal.CANCELLED and evidence.status is not None:
        return None
    return _by_signal(signal, OWN_SIGNALS)


def decisive_code(evidence: Evidence) -> Verdict | None:
    """A code that says exactly what happened."""
    return _by_code(evidence, _DECISIVE)


def sentence(evidence: Evidence) -> Verdict | None:
    """A sentence that says what the codes do not."""
    return _own_quota(evidence) or _by_phrase(evidence, PHRASES)


def kindred_code(evidence: Evidence) -> Verdict | None:
    """A code that nobody has listed and that holds the stem of one that is."""
    together = " ".join(evidence.codes)
    for rule, stems in _STEMS:
        for stem in stems:
            if stem in together:
                return _verdict(rule, next(written for code, written in evidence.codes.items() if stem in code))
    return None


def firm_code(evidence: Evidence) -> Verdict | None:
    """A code that names a family."""
    return _by_code(evidence, _FIRM)


def status(evidence: Evidence) -> Verdict | None:
    """The innermost status."""
    number = evidence.decisive_status
    if number is None:
        return None
    if (network := _by_phrase(evidence, NETWORK)) and number in {409, 500}:
        return network
    kind, retryable = STATUSES.get(number) or _family(number)
    if number == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and "htmlpage" in evidence.codes:
        # Our side's proxy counts bytes; only a provider counts tokens.
        kind = ErrorKind.CONFIG
    return Verdict(kind=kind, retryable=retryable, rule=f"status {number}", evidence=str(number))


def reset(evidence: Evidence) -> Verdict | None:
    """An HTTP/2 reset."""
    return http2.judge(evidence.failure, evidence.verbatim)


def soft_code(evidence: Evidence) -> Verdict | None:
    """A class or type that speaks where no status does."""
    return _by_code(evidence, _SOFT)


def network_words(evidence: Evidence) -> Verdict | None:
    """Words about the network."""
    return _by_phrase(evidence, NETWORK)


def late_signal(evidence: Evidence) -> Verdict | None:
    """How the caller saw the stream end."""
    return _by_signal(evidence.failure.signal, LATE_SIGNALS)


RULES: Final[tuple[Rule, ...]] = (
    own_signal,
    chains.judge,
    decisive_code,
    numbers.judge,
    sentence,
    firm_code,
    kindred_code,
    status,
    reset,
    network_words,
    soft_code,
    late_signal,
)


def _family(number: int) -> tuple[ErrorKind, bool]:
    if number in CLOUDFLARE_EDGE:
        return ErrorKind.TIMEOUT, True
    return ErrorKind.GENERIC, number >= HTTPStatus.INTERNAL_SERVER_ERROR


def _own_quota(evidence: Evidence) -> Verdict | None:
    """OpenAI's sentence for spent credit is Google's for a minute's quota; who speaks decides."""
    seen = first_found(evidence.text, _OWN_QUOTA)
    if seen is None or evidence.decisive_status != HTTPStatus.TOO_MANY_REQUESTS:
        return None
    by_google = first_found(f"{evidence.failure.provider or ''} {evidence.text}".lower(), _GOOGLE)
    if by_google or "resourceexhausted" in evidence.codes or evidence.failure.provider in {None, "unknown"}:
        return Verdict(kind=ErrorKind.RATE_LIMIT, retryable=True, rule="quota of a minute", evidence=seen)
    return Verdict(kind=ErrorKind.USAGE_LIMIT, retryable=False, rule="spent credit", evidence=seen)


def _by_signal(
    signal: Signal | None, table: dict[Signal, tuple[ErrorKind, bool, Situation | None]]
) -> Verdict | None:
    if signal is None or signal not in table:
        return None
    kind, retryable, situation = table[signal]
    return Verdict(kind=kind, retryable=retryable, rule=f"signal {signal}", evidence=signal, situation=situation)


def _by_code(evidence: Evidence, table: codes.Index) -> Verdict | None:
    """Return the verdict of the topmost rule any code of which is present, else of the most derived class."""
    present = [(table[code], written) for code, written in evidence.codes.items() if code in table]
    if present:
        (_, rule), seen = min(present, key=lambda hit: hit[0][0])
        return _verdict(rule, seen)
    # Not the topmost here: an SDK's base class would speak for all of its exceptions.
    name = next((name for name in evidence.types if name in table), None)
    return _verdict(table[name][1], name) if name else None


def _by_phrase(evidence: Evidence, table: PhraseTable) -> Verdict | None:
    found = table.find(evidence.text, evidence.starts, evidence.decisive_status)
    return _verdict(*found) if found else None


def _verdict(rule: CodeRule | PhraseRule, seen: str) -> Verdict:
    return Verdict(
        kind=rule.kind, retryable=rule.retryable, rule=rule.name, evidence=seen, situation=rule.situation
    )
