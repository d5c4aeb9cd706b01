"""Numbers that decide: requests that can never fit, and windows too long to wait for."""

import re
from http import HTTPStatus

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures.evidence import Evidence
from turnkeeper_worker.failures.verdict import Verdict
from turnkeeper_worker.failures.words import first_found, phrases

_LIMIT = re.compile(r"\blimit:?\s{1,3}~?(?P<number>\d{1,15}(?:,\d{3}){0,4})(?!\.?\d)", re.IGNORECASE)
_REQUESTED = re.compile(r"\brequested:?\s{1,3}~?(?P<number>\d{1,15}(?:,\d{3}){0,4})", re.IGNORECASE)
_QUOTA_KEYS = ("quotaId", "quota_id", "quota_limit", "quotaLimit")
_LONG_QUOTA = re.compile(r"per_?(?:day|week|month)|daily|weekly|monthly", re.IGNORECASE)
_WINDOW_IN_NAME = re.compile(r"(?:Per|By)(?:Day|Week|Month)(?![a-z])")
_LONG_WINDOW = phrases(
    """
    per day | per-day | per_day | perday | a day | / day | /day | per week | per month | / month
    /month | calls / month | per 86400s | (tpd) | (rpd) | tpd | rpd
    """
)
_LIMITING = phrases("limit* | quota* | exceeded | too many | allowance")
_THROTTLING_STATUSES = frozenset({None, 402, 403, 413, 429})
_UNIFIED = "anthropic-ratelimit-unified-"


def judge(evidence: Evidence) -> Verdict | None:
    """Judge by numbers and windows; None where they decide nothing."""
    return _never_fits(evidence) or _long_window(evidence) or _subscription(evidence)


def _never_fits(evidence: Evidence) -> Verdict | None:
    limit = _LIMIT.search(evidence.verbatim)
    requested = _REQUESTED.search(evidence.verbatim)
    if limit is None:
        return None
    if _number(limit["number"]) == 0 and evidence.decisive_status in _THROTTLING_STATUSES:
        return _used_up("limit of zero", limit[0])
    if requested is None or _number(requested["number"]) <= _number(limit["number"]):
        return None
    # Waiting cannot help: the request alone is larger than the whole window.
    seen = f"{limit[0]}, {requested[0]}"
    return Verdict(kind=ErrorKind.CONTEXT_OVERFLOW, retryable=False, rule="never fits", evidence=seen)


def _long_window(evidence: Evidence) -> Verdict | None:
    if evidence.decisive_status not in _THROTTLING_STATUSES:
        return None
    if quota := _long_quota(evidence):
        return _used_up("quota of a day or more", quota)
    named = _WINDOW_IN_NAME.search(evidence.verbatim)
    window = named[0] if named else first_found(evidence.text, _LONG_WINDOW)
    if window and first_found(evidence.text, _LIMITING):
        return _used_up("quota of a day or more", window)
    return None


def _long_quota(evidence: Evidence) -> str | None:
    """Return the quota that Google names for a window of a day or more, or for nothing at all."""
    for layer in evidence.layers:
        for key in _QUOTA_KEYS:
            if isinstance(name := layer.fields.get(key), str) and _LONG_QUOTA.search(name):
                return name
        if str(layer.fields.get("quota_limit_value")) == "0":
            return "quota_limit_value: 0"
    return None


def _subscription(evidence: Evidence) -> Verdict | None:
    """Judge the plans that report their windows of hours and weeks in headers of every response."""
    if evidence.status != HTTPStatus.TOO_MANY_REQUESTS:
        return None
    headers = evidence.headers
    if headers.get(f"{_UNIFIED}status") == "rejected":
        return _used_up("plan window", f"{_UNIFIED}status: rejected")
    for bucket in ("primary", "secondary"):
        if headers.get(f"x-codex-{bucket}-used-percent", "").startswith("100"):
            return _used_up("plan window", f"x-codex-{bucket}-used-percent: 100")
    return None


def _used_up(rule: str, seen: str) -> Verdict:
    return Verdict(kind=ErrorKind.USAGE_LIMIT, retryable=False, rule=rule, evidence=seen)


def _number(digits: str) -> int:
    return int(digits.replace(",", ""))
