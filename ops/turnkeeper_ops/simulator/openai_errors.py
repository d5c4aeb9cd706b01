"""How OpenAI words its refusals: `{"error": {"message", "type", "param", "code"}}`.

The sentences are the real ones as far as they are known; programs in the wild match on them.
"""

from collections.abc import Container, Mapping
from typing import Any, assert_never

from turnkeeper_ops.simulator.scripts import Complaint, Spelling, StatusStep
from turnkeeper_ops.simulator.wire import PlainResponse, Refused

INVALID_REQUEST = "invalid_request_error"
KEYS_PAGE = "https://platform.openai.com/account/api-keys"
CONTEXT_OVERFLOW = "Your input exceeds the context window of this model. Please adjust your input and try again."
QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on "
    "this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)

SERVER_ERROR = (
    "The server had an error while processing your request. Sorry about that! Please contact us "
    "through our help center at help.openai.com if the error persists."
)


class ApiError(Refused):
    """A request that the provider refuses."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = INVALID_REQUEST,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status
        self.kind = kind

    def plain(self) -> PlainResponse:
        """Return the response that says so."""
        body = error_body(str(self), kind=self.kind, param=self.param, code=self.code)
        return PlainResponse(status=self.status, body=body, headers={})


def error_body(
    message: str, *, kind: str = INVALID_REQUEST, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def check_key(authorization: str | None, accepted: Container[str]) -> str:
    """Return the key of a request; refuse one without a right key.

    Raises:
        ApiError: 401, with the key masked as OpenAI masks it.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an API key from "
            f"{KEYS_PAGE}.",
            status=401,
        )
    if key.strip() not in accepted:
        raise ApiError(
            f"Incorrect API key provided: {mask(key.strip())}. You can find your API key at {KEYS_PAGE}.",
            code="invalid_api_key",
            status=401,
        )
    return key.strip()


def response_headers(request_id: str) -> dict[str, str]:
    """Return the headers that OpenAI sends with everything."""
    return {
        "x-request-id": request_id,
        "openai-version": "2020-10-01",
        "openai-organization": "org-simulator",
    }


def mask(key: str) -> str:
    """Hide the middle of a key.

    >>> mask("sk-simulator")
    'sk-simul*ator'
    >>> mask("secret")
    '******'
    """
    head, tail = 8, 4
    if len(key) < head + tail:
        return "*" * len(key)
    return f"{key[:head]}{'*' * max(1, len(key) - head - tail)}{key[-tail:]}"


NGINX_PAGE = (
    "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)

_BODIES: Mapping[int, dict[str, Any] | str] = {
    400: error_body("Invalid request."),
    401: error_body(
        f"Incorrect API key provided: sk-simul****0000. You can find your API key at {KEYS_PAGE}.",
        code="invalid_api_key",
    ),
    403: error_body(
        "You are not allowed to sample from this model.", kind="permission_error", code="model_access_denied"
    ),
    404: error_body("The requested resource was not found."),
    408: error_body("Request timed out.", kind="timeout"),
    409: error_body(
        "Another process is currently operating on this conversation. Please retry in a few seconds.",
        code="conversation_locked",
    ),
    413: NGINX_PAGE.format(title="413 Request Entity Too Large"),
    422: error_body("Unprocessable request."),
    429: error_body(
        "Rate limit reached for requests in organization org-simulator on requests per min (RPM): "
        "Limit 500, Used 500, Requested 1. Visit https://platform.openai.com/account/rate-limits to learn "
        "more.",
        kind="requests",
        code="rate_limit_exceeded",
    ),
    500: error_body(
        SERVER_ERROR,
        kind="server_error",
        code="server_error",
    ),
    502: NGINX_PAGE.format(title="502 Bad Gateway"),
    503: error_body(
        "Our servers are currently overloaded. Please try again later.",
        kind="service_unavailable_error",
        code="server_is_overloaded",
    ),
    504: NGINX_PAGE.format(title="504 Gateway Time-out"),
}

_HEADERS: Mapping[int, dict[str, str]] = {
    429: {"Retry-After": "1"},
}


def status_body(status: int) -> dict[str, Any] | str:
    """Return what the provider, or the proxy before it, says with *status*."""
    return _BODIES.get(status) or error_body(f"The request failed with status {status}.", kind="api_error")


def status_headers(status: int) -> dict[str, str]:
    """Return the headers that come with *status*."""
    return _HEADERS.get(status, {})


def plain_status(step: StatusStep, param: str) -> PlainResponse:
    """Fill in what the provider would say with the status of *step*; *param* holds the prompt."""
    body = _complaint_body(step.complaint, param) if step.complaint else status_body(step.status)
    headers = {} if step.complaint else status_headers(step.status)
    return PlainResponse(
        status=step.status,
        body=body if step.body is None else step.body,
        headers=headers if step.headers is None else step.headers,
    )


def context_overflow(param: str) -> ApiError:
    """Say that the prompt does not fit."""
    return ApiError(CONTEXT_OVERFLOW, param=param, code="context_length_exceeded")


def too_many_requests(model: str | None) -> ApiError:
    """Say that the key has made too many requests."""
    message = f"Rate limit reached for {model} in organization org-simulator on requests per min (RPM)."
    return ApiError(message, status=429, kind="requests", code="rate_limit_exceeded")


def _complaint_body(complaint: Complaint, param: str) -> dict[str, Any]:
    match complaint:
        case Complaint.QUOTA:
            return error_body(QUOTA, kind="insufficient_quota", code="insufficient_quota")
        case Complaint.CONTEXT_OVERFLOW:
            return error_body(CONTEXT_OVERFLOW, param=param, code="context_length_exceeded")
        case other:
            assert_never(other)


def lost_anchor(spelling: Spelling, anchor: str) -> tuple[int, dict[str, Any]]:
    """Return the usual status and the body that say in this spelling that *anchor* is gone.

    The spellings of message threads are not OpenAI's; they say `not_found`.
    """
    bodies = _lost_anchor_bodies(anchor)
    return _LOST_ANCHOR_STATUS.get(spelling, 400), bodies.get(spelling, bodies[Spelling.NOT_FOUND])


_LOST_ANCHOR_STATUS: Mapping[Spelling, int] = {
    Spelling.XAI_NOT_FOUND: 404,
    Spelling.ITEM_NOT_PERSISTED: 404,
}


def _lost_anchor_bodies(anchor: str) -> Mapping[Spelling, dict[str, Any]]:
    param = "previous_response_id"
    suffix = anchor.removeprefix("resp_")
    return {
        Spelling.NOT_FOUND: error_body(
            f"Previous response with id '{anchor}' not found.",
            param=param,
            code="previous_response_not_found",
        ),
        Spelling.INVALID: error_body("Invalid `previous_response_id`."),
        Spelling.INVALID_WITH_ID: error_body(f"Invalid previous_response_id: {anchor}", param=param),
        Spelling.UNSUPPORTED_DETAIL: {"detail": "Unsupported parameter: previous_response_id"},
        Spelling.ZERO_RETENTION: error_body(
            "Previous response cannot be used for this organization due to Zero Data Retention.",
            param=param,
            code="unsupported_parameter",
        ),
        Spelling.XAI_NOT_FOUND: {"code": "not-found", "error": f"Response {anchor} not found."},
        Spelling.LM_STUDIO: error_body(f"Prediction history node with id {anchor} not found"),
        Spelling.NO_TOOL_CALL: error_body(
            f"No tool call found for function call output with call_id call_{suffix}.", param="input"
        ),
        Spelling.NO_TOOL_OUTPUT: error_body(
            f"No tool output found for function call call_{suffix}.", param="input"
        ),
        Spelling.ITEM_NOT_PERSISTED: item_not_persisted(f"rs_{suffix}"),
        Spelling.INVALID_ENCRYPTED_CONTENT: invalid_encrypted_content(f"for item rs_{suffix}"),
    }


def invalid_encrypted_content(which: str) -> dict[str, Any]:
    """Return the body that says that encrypted content is not what this provider made for this key."""
    return error_body(
        f"The encrypted content {which} could not be verified. Reason: Encrypted content could not be decrypted "
        "or parsed.",
        code="invalid_encrypted_content",
    )


def item_not_persisted(item_id: str) -> dict[str, Any]:
    """Return the body that says that an item is not stored."""
    return error_body(
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false. Try "
        "again with `store` set to true, or remove this item from your input.",
        param="input",
    )
