"""How Anthropic words its refusals: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

A status and a type belong together; 503 is not in Anthropic's table and says what 529 says.
"""

from collections.abc import Container, Mapping
from typing import Any, assert_never

from turnkeeper_ops.simulator.openai_errors import NGINX_PAGE
from turnkeeper_ops.simulator.scripts import Complaint, ErrorEventStep, StatusStep
from turnkeeper_ops.simulator.wire import PlainResponse, Refused

API_ERROR = "api_error"

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: API_ERROR,
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_MESSAGES: Mapping[int, str] = {
    400: "Error",
    401: "invalid x-api-key",
    402: "Your account has a billing problem. Please check your payment method.",
    403: "Your API key does not have permission to use the specified resource.",
    404: "Not found",
    409: "Another request is currently operating on this resource.",
    413: "Request exceeds the maximum size",
    429: "This request would exceed your organization's rate limit of 50 requests per minute. For details, "
    "refer to: https://docs.claude.com/en/api/rate-limits.",
    500: "Internal server error",
    503: "Overloaded",
    504: "Request timed out. Please try again, or consider streaming.",
    529: "Overloaded",
}
_PAGES: Mapping[int, str] = {502: "502 Bad Gateway"}
"""What a proxy before the provider answers."""
_HEADERS: Mapping[int, Mapping[str, str]] = {429: {"retry-after": "1"}}

_EVENT_TYPES: Mapping[str, str] = {
    "insufficient_quota": "billing_error",
    "rate_limit_exceeded": "rate_limit_error",
    "server_error": API_ERROR,
    "server_is_overloaded": "overloaded_error",
    "context_length_exceeded": "invalid_request_error",
}
"""What the codes and types of a script's error are here; another type stands as it is."""


class MessagesError(Refused):
    """A request that Anthropic refuses."""

    def __init__(
        self, message: str, *, status: int = 400, request_id: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        """Put in by who answers; the checks do not know it."""
        self.details = details
        """What programs read: `error_code`, and what belongs to it; None: the type and the message say it all."""

    def plain(self) -> PlainResponse:
        """Return the response that says so."""
        details = {} if self.details is None else {"details": self.details}
        body = error_body(str(self), TYPES[self.status], self.request_id, **details)
        return PlainResponse(status=self.status, body=body, headers={})


def error_body(message: str, kind: str, request_id: str, **rest: Any) -> dict[str, Any]:
    """Return the body of an error, and the payload of an error event."""
    return {"type": "error", "error": {"type": kind, "message": message, **rest}, "request_id": request_id}


def check_headers(headers: Mapping[str, str], accepted: Container[str]) -> str:
    """Return the key of a request; refuse one without a right key, or without the API's version.

    Raises:
        MessagesError: 401 or 400.
    """
    # `anthropic` 2.12 sends its API key as a bearer token; plain clients send x-api-key. Both are taken.
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    key = headers.get("x-api-key", bearer if scheme.lower() == "bearer" else None)
    if key is None:
        raise MessagesError("x-api-key header is required", status=401)
    if key not in accepted:
        raise MessagesError("invalid x-api-key", status=401)
    if "anthropic-version" not in headers:
        raise MessagesError("anthropic-version: header is required")
    return key


def prompt_too_long(tokens: int, limit: int) -> str:
    """Say that the prompt does not fit."""
    return f"prompt is too long: {tokens} tokens > {limit} maximum"


def too_many_requests(request_id: str) -> MessagesError:
    """Say that the key has made too many requests."""
    return MessagesError(_MESSAGES[429], status=429, request_id=request_id)


def event_type(step: ErrorEventStep) -> str:
    """Return Anthropic's type for the error of *step*.

    >>> event_type(ErrorEventStep(code="rate_limit_exceeded"))
    'rate_limit_error'
    """
    return _EVENT_TYPES.get(step.code or "") or _EVENT_TYPES.get(step.error_type, step.error_type)


def plain_status(step: StatusStep, request_id: str) -> PlainResponse:
    """Fill in what the provider would say with the status of *step*."""
    body = _complaint_body(step.complaint, request_id) if step.complaint else _status_body(step.status, request_id)
    headers = {} if step.complaint else _HEADERS.get(step.status, {})
    return PlainResponse(
        status=step.status,
        body=body if step.body is None else step.body,
        headers=headers if step.headers is None else step.headers,
    )


def _complaint_body(complaint: Complaint, request_id: str) -> dict[str, Any]:
    match complaint:
        case Complaint.QUOTA:
            # A cap on spending comes under the same status and type as a rate limit; its code tells them apart.
            message = "You have reached your specified API usage limits."
            details = {"error_code": "enforced_spend_limit_reached"}
            return error_body(message, TYPES[429], request_id, details=details)
        case Complaint.CONTEXT_OVERFLOW:
            return error_body(prompt_too_long(200_001, 200_000), TYPES[400], request_id)
        case other:
            assert_never(other)


def _status_body(status: int, request_id: str) -> dict[str, Any] | str:
    if status in _PAGES:
        return NGINX_PAGE.format(title=_PAGES[status])
    message = _MESSAGES.get(status, f"The request failed with status {status}.")
    return error_body(message, TYPES.get(status, API_ERROR), request_id)
