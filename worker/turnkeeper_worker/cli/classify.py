"""`turnkeeper classify`: failures in, answers out, one JSON object a line.  Needs no broker and no database."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO, TypeVar

from turnkeeper_worker.failures import Classified, ExceptionFact, Failure, Http2Reset, Phase, Signal, classify
from turnkeeper_worker.failures.http2 import code_named

Member = TypeVar("Member", bound=StrEnum)


def run(lines: TextIO, out: TextIO, *, explain: bool) -> int:
    """Answer every failure in *lines*; return 1 when a line was broken, else 0.

    With *explain*, each answer also names the rule that decided, what it saw, and where the hint stood.
    """
    exit_code = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        answer = _answer(line, number, explain=explain)
        exit_code |= "error" in answer
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return exit_code


def _answer(line: str, number: int, *, explain: bool) -> dict[str, object]:
    try:
        case = json.loads(line)
    except (ValueError, RecursionError):
        return {"id": None, "error": f"line {number} is not JSON"}
    if not isinstance(case, dict):
        return {"id": None, "error": f"line {number} is not a JSON object"}
    classified = classify(read_failure(case), now=datetime.now(UTC))
    answer = _render(classified)
    return {"id": case.get("id"), **answer, **(_explanation(classified) if explain else {})}


def read_failure(case: Mapping[str, Any]) -> Failure:
    """Read the fields that are known; a field of the wrong type counts as absent."""
    request = _mapping(case.get("request"))
    return Failure(
        provider=_text(case.get("provider")),
        phase=_member(Phase, case.get("phase")),
        signal=_member(Signal, case.get("signal")),
        status=_integer(case.get("http_status")),
        headers={str(name): str(value) for name, value in _mapping(case.get("headers")).items()},
        body=case.get("body"),
        exceptions=_exceptions(case),
        chained=bool(request.get("previous_response_id") or request.get("previous_message_id")),
        visible=case.get("visible") is True,
        h2=_reset(_mapping(case.get("h2"))),
    )


def _exceptions(case: Mapping[str, Any]) -> tuple[ExceptionFact, ...]:
    name, text = _text(case.get("exception_type")), _text(case.get("exception_text"))
    if name is None and text is None:
        return ()
    return (ExceptionFact(names=(name,) if name else (), text=text or ""),)


def _reset(h2: Mapping[str, Any]) -> Http2Reset | None:
    if not h2:
        return None
    from_peer = h2.get("from_peer")
    return Http2Reset(
        code=code_named(str(h2.get("code"))), from_peer=from_peer if isinstance(from_peer, bool) else None
    )


def _render(classified: Classified) -> dict[str, object]:
    error, hint = classified.error, classified.hint
    return {
        "kind": error.kind,
        "retryable": error.retryable,
        "chain_broken": classified.chain_broken,
        "retry_after_s": hint.wait.total_seconds() if hint else None,
        "status_code": error.status_code,
        "detail": error.detail,
        "message": error.message,
    }


def _explanation(classified: Classified) -> dict[str, object]:
    return {
        "rule": classified.rule,
        "evidence": classified.evidence,
        "hint_source": classified.hint.source if classified.hint else None,
        "code": classified.code,
        "request_id": classified.request_id,
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _member(enum: type[Member], value: object) -> Member | None:
    return next((member for member in enum if member == value), None)
