"""From the facts of a failure to what is told about it.  Pure: no clock, no chance, no I/O, no exceptions.

One module per step: `unwrap` takes the wrappers off, `rules` asks its questions in order over the tables in
`chains`, `codes`, `numbers`, `phrasebook`, `http2` and `transport`, `hints` finds the wait that was asked for,
and `detail` keeps the provider's own sentence.
"""

import re
from datetime import datetime

from turnkeeper.errors import ChatError, ErrorKind, terminal_copy
from turnkeeper_worker.failures.classified import Classified, Hint
from turnkeeper_worker.failures.detail import clean, detail_of, shorten
from turnkeeper_worker.failures.evidence import Evidence
from turnkeeper_worker.failures.facts import ExceptionFact, Failure, Http2Reset, Phase, Signal
from turnkeeper_worker.failures.hints import BUCKETS, find_hint, moment_of, reset_after
from turnkeeper_worker.failures.rules import judge
from turnkeeper_worker.failures.unwrap import describe, unwrap
from turnkeeper_worker.failures.verdict import Verdict
from turnkeeper_worker.masking import mask

__all__ = [
    "BUCKETS",
    "Classified",
    "ExceptionFact",
    "Failure",
    "Hint",
    "Http2Reset",
    "Phase",
    "Signal",
    "classify",
    "describe",
    "mask",
    "moment_of",
    "reset_after",
]

_MOVABLE = frozenset({ErrorKind.GENERIC, ErrorKind.TIMEOUT, ErrorKind.OVERLOADED, ErrorKind.RATE_LIMIT})
"""Kinds of which a provider may say itself whether to retry; the others need a person."""


_REQUEST_ID = re.compile(
    r"(?:req|chatcmpl|msg|gen|resp)[-_][A-Za-z0-9]{8,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
"""The forms that vendors document; as long as a key, and no key."""


def classify(failure: Failure, *, now: datetime) -> Classified:
    """Say what went wrong, whether to retry, and what people are told.

    Args:
        failure: The facts.  Anything may stand in its body, headers and texts; nothing makes this raise.
        now: The present, with its time zone; waits until a moment are measured from it.
    """
    evidence = unwrap(failure)
    verdict = judge(evidence)
    return Classified(
        error=ChatError(
            kind=verdict.kind,
            message=terminal_copy(verdict.kind, failure.provider, verdict.situation),
            provider=failure.provider,
            retryable=_retryable(evidence, verdict),
            status_code=evidence.status,
            detail=detail_of(evidence, verdict),
        ),
        hint=find_hint(evidence, verdict, now=now),
        chain_broken=verdict.chain_broken,
        code=_code(evidence),
        request_id=_request_id(evidence),
        rule=verdict.rule,
        evidence=shorten(clean(verdict.evidence)),
    )


def _retryable(evidence: Evidence, verdict: Verdict) -> bool:
    """Let the provider's own word on retries stand where the kind leaves it open."""
    if verdict.chain_broken or verdict.kind not in _MOVABLE or verdict.rule.startswith("signal"):
        return verdict.retryable
    header = evidence.headers.get("x-should-retry", "").strip().lower()
    if header in {"true", "false"}:
        return header == "true"
    said = (layer.retryable for layer in reversed(evidence.layers) if layer.retryable is not None)
    return next(said, verdict.retryable)


def _code(evidence: Evidence) -> str | None:
    in_fields = (code for layer in reversed(evidence.layers) if layer.fields for code in layer.codes)
    code = next((code for code in in_fields if code != "error"), None)
    return clean(code)[:100] if code else None


def _request_id(evidence: Evidence) -> str | None:
    for name in (
        "x-request-id",
        "request-id",
        "x-amzn-requestid",
        "apim-request-id",
        "x-goog-request-id",
        "cf-ray",
    ):
        if name in evidence.headers:
            return _quotable(evidence.headers[name])
    in_fields = (layer.fields.get("request_id") for layer in evidence.layers)
    return next((_quotable(found) for found in in_fields if isinstance(found, str)), None)


def _quotable(request_id: str) -> str:
    """Keep an id that support staff can look up; what does not look like one is cleaned as any text is."""
    return request_id if _REQUEST_ID.fullmatch(request_id) else clean(request_id)[:200]
