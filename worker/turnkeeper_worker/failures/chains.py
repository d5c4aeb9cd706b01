"""Broken chains: what the request relied on, and the provider once gave us, is not known there any more.

Recognised by structure, because every release brings new sentences: the request was chained, the status is one
that refuses a request, and a code or the text speaks of the anchor, of stored items, or of history. Sealed
reasoning that its maker cannot open is the same, chained or not: without the seals the history is accepted. So is
a thread that may not be opened: without it the request is.
"""

from http import HTTPStatus

from turnkeeper.errors import ErrorKind, Situation
from turnkeeper_worker.failures.evidence import Evidence, fold
from turnkeeper_worker.failures.verdict import Verdict
from turnkeeper_worker.failures.words import first_found, phrases

_REFUSALS = frozenset({None, 400, 404, 409, 410, 422})
"""Statuses under which a lost anchor was seen; None is a 200 stream or a bare exception."""

_WRITTEN = """
    previous_response_not_found previous_response_expired invalid_previous_response_id response_not_found
    response_expired item_not_found conversation_not_found invalid_encrypted_content thread_not_found
    thread_fingerprint_mismatch thread_continue_in_flight thread_already_continued thread_unsupported_request
    thread_expired previous_message_not_found
"""
CODES = frozenset(map(fold, _WRITTEN.split()))
"""Folded codes that speak of an anchor, of OpenAI's stored responses and of Anthropic's threads."""

UNCHAINED_CODES = frozenset({fold("invalid_encrypted_content"), fold("thread_unsupported_request")})
"""Those of them that a request meets without an anchor: by a seal, or by asking for a thread at all."""
SEAL_BROKEN = phrases(
    """
    different azure openai resource | encrypted content … could not be verified | could not decrypt
    invalid encrypted_content | invalid `encrypted_content` | invalid signature in | invalid `signature` in
    """
)
ANCHOR_LOST = SEAL_BROKEN + phrases(
    """
    previous_response_id | previous response | previous_message_id | response with id … not found
    response … not found | response … expired | response … deleted | response … does not exist
    item with id | item … not found | items are not persisted when store | message with id … not found
    history node | stored response | stored conversation | data retention | zdr | no tool call found for
    no tool output found for | without its required | encrypted_content
    thread … not found | thread … expired | thread … differs
    """
)


ELSEWHERE = phrases("model* | deployment* | endpoint* | engine | route | path | url | page | method")
"""What else a 404 may miss."""


def judge(evidence: Evidence) -> Verdict | None:
    """Judge whether the chain is broken; None where the request failed for another reason."""
    if evidence.decisive_status not in _REFUSALS:
        return None
    seen = _loss(evidence) if evidence.failure.chained else _unchained_loss(evidence)
    if seen is None:
        return None
    return Verdict(
        kind=ErrorKind.GENERIC,
        retryable=True,
        rule="chain broken",
        evidence=seen,
        chain_broken=True,
        situation=Situation.CHAIN_LOST,
    )


def _loss(evidence: Evidence) -> str | None:
    return _code(evidence, CODES) or first_found(evidence.text, ANCHOR_LOST) or _absence(evidence)


def _unchained_loss(evidence: Evidence) -> str | None:
    return _code(evidence, UNCHAINED_CODES) or first_found(evidence.text, SEAL_BROKEN)


def _code(evidence: Evidence, codes: frozenset[str]) -> str | None:
    return next((written for code, written in evidence.codes.items() if code in codes), None)


def _absence(evidence: Evidence) -> str | None:
    """Return the 404 under which a chained request names nothing else that could be missing.

    A heal that was not needed costs one request; a chain that is not healed costs the turn.
    """
    if evidence.decisive_status != HTTPStatus.NOT_FOUND or first_found(evidence.text, ELSEWHERE):
        return None
    return None if any("model" in code for code in evidence.codes) else "404"
