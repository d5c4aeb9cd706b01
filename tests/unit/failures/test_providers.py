"""What each provider sends, and what it means.  A row: status, body or text, then kind, retry, hint in seconds."""

# ruff: noqa: E501 - a row of a table is a line, whatever a provider had to say

from collections.abc import Callable

import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified

Ask = Callable[..., Classified]

OVERLOADED, RATE, TIMEOUT = ErrorKind.OVERLOADED, ErrorKind.RATE_LIMIT, ErrorKind.TIMEOUT
AUTH, CONFIG, CONTEXT = ErrorKind.AUTH, ErrorKind.CONFIG, ErrorKind.CONTEXT_OVERFLOW
USAGE, FILTER, GENERIC = ErrorKind.USAGE_LIMIT, ErrorKind.CONTENT_FILTER, ErrorKind.GENERIC
RETRY, STOP = True, False


def error(message: str, **fields: object) -> dict[str, object]:
    return {"error": {"message": message, **fields}}


def check(
    ask: Ask,
    provider: str,
    status: int | None,
    body: object,
    kind: ErrorKind,
    *,
    retryable: bool,
    hint: float | None = None,
) -> None:
    classified = ask(status, body, provider=provider)

    assert (classified.error.kind, classified.error.retryable) == (kind, retryable), classified.rule
    assert (classified.hint.wait.total_seconds() if classified.hint else None) == hint


OPENAI = [
    pytest.param(429, error("Rate limit reached for gpt-5 in organization org-x on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.", type="requests", code="rate_limit_exceeded"), RATE, RETRY, 20, id="a minute of requests is used up"),
    pytest.param(429, error("Rate limit reached for gpt-5 on tokens per min (TPM): Limit 30,000, Used 29,990, Requested 2,000. Please try again in 1m2.5s.", type="tokens", code="rate_limit_exceeded"), RATE, RETRY, 62.5, id="thousands are written with commas"),
    pytest.param(429, error("Request too large for gpt-5 on tokens per min (TPM): Limit 30,000, Requested 36,278.", type="tokens", code="rate_limit_exceeded"), CONTEXT, STOP, None, id="larger than the window never fits"),
    pytest.param(429, error("Rate limit reached for gpt-5 on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s.", type="requests", code="rate_limit_exceeded"), USAGE, STOP, 432, id="a day of requests is used up"),
    pytest.param(429, error("You exceeded your current quota, please check your plan and billing details.", type="insufficient_quota", code="insufficient_quota"), USAGE, STOP, None, id="credit is spent"),
    pytest.param(429, error("Your account is not active, please check your billing details on our website.", type="billing_not_active", code="billing_not_active"), USAGE, STOP, None, id="billing is not active"),
    pytest.param(400, error("Billing hard limit has been reached", type="invalid_request_error", code="billing_hard_limit_reached"), USAGE, STOP, None, id="a hard limit as a 400"),
    pytest.param(401, error("Incorrect API key provided: sk-abc*def.", type="invalid_request_error", code="invalid_api_key"), AUTH, STOP, None, id="a wrong key"),
    pytest.param(401, error("You must be a member of an organization to use the API", type="invalid_request_error"), AUTH, STOP, None, id="no member of an organisation"),
    pytest.param(401, error("You have insufficient permissions for this operation. Missing scopes: model.request.", type="invalid_request_error"), AUTH, STOP, None, id="a key without the scope"),
    pytest.param(403, error("Country, region, or territory not supported", type="request_forbidden", code="unsupported_country_region_territory"), CONFIG, STOP, None, id="a country that is not served"),
    pytest.param(403, error("Project `proj_x` does not have access to model `gpt-5`", type="invalid_request_error", code="model_not_found"), CONFIG, STOP, None, id="a project without the model as a 403"),
    pytest.param(404, error("The model `gpt-9` does not exist or you do not have access to it.", type="invalid_request_error", code="model_not_found"), CONFIG, STOP, None, id="no such model"),
    pytest.param(404, error("Invalid URL (POST /v1/v1/responses)", type="invalid_request_error"), CONFIG, STOP, None, id="a base URL with the version twice"),
    pytest.param(400, error("Unsupported parameter: 'temperature' is not supported with this model.", type="invalid_request_error", code="unsupported_parameter"), CONFIG, STOP, None, id="a parameter that the model lacks"),
    pytest.param(400, error("Unsupported value: 'reasoning.effort' does not support 'minimal' with this model.", type="invalid_request_error", code="unsupported_value"), CONFIG, STOP, None, id="a value that the model lacks"),
    pytest.param(400, error("Invalid schema for function 'x': In context=(), 'required' is required", type="invalid_request_error", code="invalid_function_parameters"), CONFIG, STOP, None, id="a tool's schema is invalid"),
    pytest.param(400, error("This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens.", type="invalid_request_error", code="context_length_exceeded"), CONTEXT, STOP, None, id="the prompt does not fit"),
    pytest.param(400, error("Invalid 'input[0].content': string too long. Expected a string with maximum length 10485760, but got a string with length 11000000 instead.", type="invalid_request_error", code="string_above_max_length"), CONTEXT, STOP, None, id="one string does not fit"),
    pytest.param(400, error("Your request was rejected as a result of our safety system.", type="invalid_request_error", code="content_policy_violation"), FILTER, STOP, None, id="the safety system refused"),
    pytest.param(400, error("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", type="invalid_request_error", code="invalid_prompt"), FILTER, STOP, None, id="a flagged prompt as a 400"),
    pytest.param(500, error("The server had an error while processing your request. Sorry about that!", type="server_error"), GENERIC, RETRY, None, id="a server error"),
    pytest.param(503, error("The engine is currently overloaded, please try again later", type="server_error"), OVERLOADED, RETRY, None, id="the engine is overloaded"),
    pytest.param(503, error("Slow down", type="server_error", code="slow_down"), OVERLOADED, RETRY, None, id="slow down"),
    pytest.param(200, {"type": "error", "code": "server_is_overloaded", "message": "Our servers are currently overloaded.", "sequence_number": 3}, OVERLOADED, RETRY, None, id="overload in the flat error event"),
    pytest.param(200, {"type": "error", "code": "rate_limit_exceeded", "message": "Rate limit reached. Please try again in 250ms.", "sequence_number": 3}, RATE, RETRY, 0.25, id="a limit in the flat error event"),
    pytest.param(200, {"type": "response.failed", "response": {"status": "failed", "error": {"code": "vector_store_timeout", "message": "Search timed out"}}}, TIMEOUT, RETRY, None, id="the vector store timed out"),
    pytest.param(200, {"type": "response.failed", "response": {"status": "failed", "error": {"code": "bio_policy", "message": "Not allowed"}}}, FILTER, STOP, None, id="the biology policy"),
    pytest.param(200, {"type": "response.completed", "response": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}}, FILTER, STOP, None, id="the status is believed and not the event's name"),
    pytest.param(200, {"type": "response.failed", "response": {"status": "failed", "error": None}}, GENERIC, RETRY, None, id="failed without a word"),
    pytest.param(429, {"detail": {"code": "usage_limit_reached", "message": "The usage limit has been reached", "resets_in_seconds": 3600}}, USAGE, STOP, 3600, id="a plan's window under detail"),
    pytest.param(402, error("You've reached your usage limit. Upgrade your plan.", type="usage_limit_exceeded"), USAGE, STOP, None, id="a plan's limit as a 402"),
]  # fmt: skip

AZURE = [
    pytest.param(429, error("Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-06-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 20 seconds. Please go here: https://aka.ms/oai/quotaincrease if you would like to further increase the default rate limit.", code="429"), RATE, RETRY, 20, id="the tier's token rate"),
    pytest.param(401, error("Access denied due to invalid subscription key or wrong API endpoint.", code="401"), AUTH, STOP, None, id="a wrong key or endpoint"),
    pytest.param(401, error("The principal `x` lacks the required data action to perform `POST` operation.", code="PermissionDenied"), AUTH, STOP, None, id="a role without the action"),
    pytest.param(403, error("Access denied due to Virtual Network/Firewall rules.", code="AccessDenied"), CONFIG, STOP, None, id="a firewall's rules"),
    pytest.param(404, error("The API deployment for this resource does not exist.", code="DeploymentNotFound"), CONFIG, STOP, None, id="no such deployment"),
    pytest.param(400, error("The chatCompletion operation does not work with the specified model, x. Please choose different model and try again.", code="OperationNotSupported"), CONFIG, STOP, None, id="an operation that the model lacks"),
    pytest.param(400, error("API version not supported", code="BadRequest"), CONFIG, STOP, None, id="an unknown API version"),
    pytest.param(408, error("The operation was timeout.", code="Timeout"), TIMEOUT, RETRY, None, id="the operation timed out"),
    pytest.param(500, error("The server had an error while processing your request.", code="InternalServerError"), GENERIC, RETRY, None, id="an internal error"),
    pytest.param(503, error("That model is currently overloaded with other requests.", type="server_error"), OVERLOADED, RETRY, None, id="an overloaded model"),
    pytest.param(400, error("The response was filtered due to the prompt triggering content management policy.", code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}), FILTER, STOP, None, id="a filtered prompt"),
    pytest.param(429, error("The system is currently experiencing high demand and cannot process your request.", code="NoCapacity"), OVERLOADED, RETRY, None, id="no capacity under 429"),
]  # fmt: skip


def anthropic(kind: str, message: str, **fields: object) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message, **fields}, "request_id": "req_011"}


ANTHROPIC = [
    pytest.param(529, anthropic("overloaded_error", "Overloaded"), OVERLOADED, RETRY, None, id="overloaded"),
    pytest.param(200, anthropic("overloaded_error", "Overloaded"), OVERLOADED, RETRY, None, id="overloaded in mid stream"),
    pytest.param(429, anthropic("rate_limit_error", "This request would exceed the rate limit for your organization of 40,000 input tokens per minute."), RATE, RETRY, None, id="a limit per minute"),
    pytest.param(429, anthropic("rate_limit_error", "Number of concurrent connections has exceeded your rate limit."), RATE, RETRY, None, id="too many connections"),
    pytest.param(429, anthropic("rate_limit_error", "Extra usage is required for long context requests."), USAGE, STOP, None, id="extra usage is required"),
    pytest.param(400, anthropic("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2026-03-02 at 00:00 UTC."), USAGE, STOP, 43200, id="the limit that the customer set"),
    pytest.param(400, anthropic("invalid_request_error", "You're out of extra usage. Add more at claude.ai/settings/usage and keep going."), USAGE, STOP, None, id="extra usage is spent"),
    pytest.param(402, anthropic("billing_error", "There is an issue with your billing or payment information."), USAGE, STOP, None, id="a billing error"),
    pytest.param(401, anthropic("authentication_error", "OAuth token has expired. Please obtain a new token or refresh your existing token."), AUTH, STOP, None, id="an expired token"),
    pytest.param(403, anthropic("permission_error", "Your API key does not have permission to use the specified resource."), AUTH, STOP, None, id="no permission"),
    pytest.param(400, anthropic("invalid_request_error", "This organization has been disabled."), AUTH, STOP, None, id="a disabled organisation as a 400"),
    pytest.param(404, anthropic("not_found_error", "model: claude-9"), CONFIG, STOP, None, id="no such model"),
    pytest.param(400, anthropic("invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"), CONTEXT, STOP, None, id="the prompt does not fit"),
    pytest.param(400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"), CONTEXT, STOP, None, id="prompt and answer do not fit"),
    pytest.param(413, anthropic("request_too_large", "Request exceeds the maximum size"), CONTEXT, STOP, None, id="more than 32 MB"),
    pytest.param(400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), FILTER, STOP, None, id="a blocked output"),
    pytest.param(400, anthropic("invalid_request_error", "messages.3: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_01."), GENERIC, STOP, None, id="a tool call without a result"),
    pytest.param(400, anthropic("invalid_request_error", "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`."), GENERIC, STOP, None, id="thinking is missing from the history"),
    pytest.param(400, anthropic("invalid_request_error", "messages.5.content.0: Invalid `signature` in `thinking` block"), GENERIC, RETRY, None, id="a foreign signature"),
    pytest.param(500, anthropic("api_error", "Internal server error"), GENERIC, RETRY, None, id="an internal error"),
    pytest.param(504, anthropic("timeout_error", "Request timed out"), TIMEOUT, RETRY, None, id="a timeout"),
    pytest.param(200, anthropic("api_error", "Internal server error"), GENERIC, RETRY, None, id="an internal error in mid stream"),
    pytest.param(200, {"type": "message_delta", "delta": {"stop_reason": "refusal"}}, FILTER, STOP, None, id="a refusal as a stop reason"),
]  # fmt: skip


def aws(kind: str, message: str, operation: str = "ConverseStream") -> str:
    return f"An error occurred ({kind}) when calling the {operation} operation: {message}"


BEDROCK = [
    pytest.param(429, aws("ThrottlingException", "Too many requests, please wait before trying again."), RATE, RETRY, None, id="too many requests"),
    pytest.param(429, aws("ThrottlingException", "Too many tokens per day, please wait before trying again."), USAGE, STOP, None, id="a day of tokens is used up"),
    pytest.param(503, aws("ServiceUnavailableException", "Bedrock is unable to process your request."), TIMEOUT, RETRY, None, id="unavailable"),
    pytest.param(503, aws("ServiceUnavailableException", "Too many connections, please wait before trying again."), RATE, RETRY, None, id="too many connections"),
    pytest.param(429, aws("ModelNotReadyException", "The model is not ready for inference."), OVERLOADED, RETRY, None, id="a model that is not ready"),
    pytest.param(None, aws("ModelNotReadyException", "Please try again."), OVERLOADED, RETRY, None, id="a model that is not ready, by class alone"),
    pytest.param(400, aws("ValidationException", "Input is too long for requested model."), CONTEXT, STOP, None, id="the prompt does not fit"),
    pytest.param(400, aws("ValidationException", "The model returned the following errors: input length and `max_tokens` exceed context limit: 1 + 2 > 2"), CONTEXT, STOP, None, id="prompt and answer do not fit"),
    pytest.param(400, aws("ValidationException", "Malformed input request: #: required key [messages] not found, please reformat your input and try again."), CONFIG, STOP, None, id="malformed input"),
    pytest.param(400, aws("ValidationException", "The provided model identifier is invalid."), CONFIG, STOP, None, id="no such model"),
    pytest.param(403, aws("ExpiredTokenException", "The security token included in the request is expired"), AUTH, STOP, None, id="an expired token"),
    pytest.param(403, aws("UnrecognizedClientException", "The security token included in the request is invalid."), AUTH, STOP, None, id="an unknown key"),
    pytest.param(403, aws("InvalidSignatureException", "Signature expired: 20260301T000000Z is now earlier than 20260301T001000Z"), AUTH, STOP, None, id="an expired signature"),
    pytest.param(404, aws("ResourceNotFoundException", "This model version has reached the end of its life."), CONFIG, STOP, None, id="a retired model"),
    pytest.param(200, {"modelStreamErrorException": {"message": "The system encountered an unexpected error during processing.", "originalStatusCode": 500}}, GENERIC, RETRY, None, id="a stream exception as a member"),
    pytest.param(200, {"throttlingException": {"message": "Too many requests"}}, RATE, RETRY, None, id="throttled in mid stream"),
    pytest.param(200, {"serviceUnavailableException": {"message": "Try your request again"}}, TIMEOUT, RETRY, None, id="unavailable in mid stream"),
    pytest.param(200, {"internalServerException": {"message": "The system encountered an unexpected error"}}, GENERIC, RETRY, None, id="an internal error in mid stream"),
    pytest.param(200, {"messageStop": {"stopReason": "content_filtered"}}, FILTER, STOP, None, id="filtered as a stop reason"),
    pytest.param(424, {"message": "failed", "originalStatusCode": 429, "resourceName": "x"}, RATE, RETRY, None, id="the original status is a limit"),
    pytest.param(500, aws("InternalServerException", "The system encountered an unexpected error during processing. Try your request again."), GENERIC, RETRY, None, id="an internal error"),
]  # fmt: skip


def google(code: int, status: str, message: str, *details: object) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
INFO = "type.googleapis.com/google.rpc.ErrorInfo"
GOOGLE = [
    pytest.param(429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", {"@type": QUOTA, "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}, {"@type": RETRY_INFO, "retryDelay": "30s"}), USAGE, STOP, 30, id="a day's quota"),
    pytest.param(429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", {"@type": QUOTA, "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}]}, {"@type": RETRY_INFO, "retryDelay": "13.5s"}), RATE, RETRY, 13.5, id="a minute's quota"),
    pytest.param(429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details. * Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 0, model: gemini-3-pro"), USAGE, STOP, None, id="a quota of zero"),
    pytest.param(429, google(429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later."), RATE, RETRY, None, id="Vertex's shared quota"),
    pytest.param(503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), OVERLOADED, RETRY, None, id="an overloaded model"),
    pytest.param(503, google(503, "UNAVAILABLE", "This model is currently experiencing high demand."), OVERLOADED, RETRY, None, id="high demand"),
    pytest.param(500, google(500, "INTERNAL", "An internal error has occurred."), GENERIC, RETRY, None, id="an internal error"),
    pytest.param(504, google(504, "DEADLINE_EXCEEDED", "The request timed out. Please try again."), TIMEOUT, RETRY, None, id="the provider's deadline"),
    pytest.param(499, google(499, "CANCELLED", "The operation was cancelled."), TIMEOUT, RETRY, None, id="cancelled by the provider"),
    pytest.param(400, google(400, "INVALID_ARGUMENT", "API key expired. Please renew the API key.", {"@type": INFO, "reason": "API_KEY_INVALID"}), AUTH, STOP, None, id="an expired key as a 400"),
    pytest.param(403, google(403, "PERMISSION_DENIED", "Generative Language API has not been used in project 1 before or it is disabled.", {"@type": INFO, "reason": "SERVICE_DISABLED"}), CONFIG, STOP, None, id="a service that is switched off"),
    pytest.param(403, google(403, "PERMISSION_DENIED", "Your API key was reported as leaked. Please use another API key."), AUTH, STOP, None, id="a leaked key"),
    pytest.param(403, google(403, "PERMISSION_DENIED", "This API method requires billing to be enabled.", {"@type": INFO, "reason": "BILLING_DISABLED"}), USAGE, STOP, None, id="billing is switched off"),
    pytest.param(404, google(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1beta, or is not supported for generateContent."), CONFIG, STOP, None, id="no such model"),
    pytest.param(400, google(400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."), CONTEXT, STOP, None, id="the prompt does not fit"),
    pytest.param(400, google(400, "INVALID_ARGUMENT", "Unable to submit request because the input token count is 40000 but model only supports up to 32768."), CONTEXT, STOP, None, id="Vertex's words for it"),
    pytest.param(400, google(400, "INVALID_ARGUMENT", "Please ensure that function call turn comes immediately after a user turn or after a function response turn."), GENERIC, STOP, None, id="turns out of order"),
    pytest.param(400, google(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unknown name \"x\" at 'tools[0]': Cannot find field."), CONFIG, STOP, None, id="an unknown field"),
    pytest.param(200, {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, FILTER, STOP, None, id="a blocked prompt"),
    pytest.param(200, {"candidates": [{"finishReason": "SAFETY"}]}, FILTER, STOP, None, id="safety as a finish reason"),
    pytest.param(200, {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}, GENERIC, RETRY, None, id="a malformed call as a finish reason"),
    pytest.param(429, google(429, "RESOURCE_EXHAUSTED", "You have exhausted your capacity on this model. Your quota will reset after 3h21m5s.", {"@type": INFO, "reason": "QUOTA_EXHAUSTED"}), USAGE, STOP, 12065, id="a plan's quota with its reset"),
]  # fmt: skip


def routed(status: int, message: str, **metadata: object) -> dict[str, object]:
    return {"error": {"message": message, "code": status, "metadata": metadata}, "user_id": "user_x"}


OPENROUTER = [
    pytest.param(429, routed(429, "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day", headers={"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1772409600000"}), USAGE, STOP, 43200, id="a day of free requests"),
    pytest.param(429, routed(429, "Rate limit exceeded: free-models-per-min. ", headers={"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1772366430000"}), RATE, RETRY, 30, id="a minute of free requests, reset in milliseconds"),
    pytest.param(402, routed(402, "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens, but can only afford 2000."), USAGE, STOP, None, id="more than the credits pay for"),
    pytest.param(402, routed(402, "Insufficient credits. This account never purchased credits."), USAGE, STOP, None, id="no credits"),
    pytest.param(403, routed(403, "Key limit exceeded (monthly limit). Manage it using https://openrouter.ai/settings/keys"), USAGE, STOP, None, id="a key's monthly limit"),
    pytest.param(403, routed(403, "Your input was flagged", reasons=["violence"], provider_name="OpenAI"), FILTER, STOP, None, id="flagged by moderation"),
    pytest.param(401, routed(401, "No auth credentials found"), AUTH, STOP, None, id="no credentials"),
    pytest.param(401, routed(401, "User not found."), AUTH, STOP, None, id="a deleted user"),
    pytest.param(404, routed(404, "No endpoints found that support tool use."), CONFIG, STOP, None, id="no endpoint with tools"),
    pytest.param(404, routed(404, "No endpoints found matching your data policy."), CONFIG, STOP, None, id="no endpoint under the data policy"),
    pytest.param(400, routed(400, "foo/bar is not a valid model ID"), CONFIG, STOP, None, id="no such model"),
    pytest.param(502, routed(502, "Provider returned error", raw="upstream connect error", provider_name="x"), TIMEOUT, RETRY, None, id="the provider is down"),
    pytest.param(400, routed(400, "Provider returned error", raw='{"error":{"message":"This endpoint\'s maximum context length is 131072 tokens. However, you requested about 140000 tokens."}}'), CONTEXT, STOP, None, id="overflow inside raw"),
    pytest.param(400, routed(400, "This endpoint's maximum context length is 131072 tokens. However, you requested about 140000 tokens (130000 of text input, 10000 in the output)."), CONTEXT, STOP, None, id="overflow at the router"),
    pytest.param(200, {"error": {"code": 502, "message": "Network connection lost."}, "choices": [{"finish_reason": "error"}]}, TIMEOUT, RETRY, None, id="a lost connection in mid stream"),
    pytest.param(200, {"choices": [{"finish_reason": "error", "native_finish_reason": "error"}]}, GENERIC, RETRY, None, id="an error as a finish reason"),
    pytest.param(503, routed(503, "There is no available model provider that meets your routing requirements"), TIMEOUT, RETRY, None, id="no provider at the moment"),
]  # fmt: skip

OTHERS = [
    pytest.param("groq", 413, error("Request too large for model `x` in organization `org_1` service tier `on_demand` on tokens per minute (TPM): Limit 6000, Requested 8000, please reduce your message size and try again.", type="tokens", code="rate_limit_exceeded"), CONTEXT, STOP, None, id="Groq: larger than the window"),
    pytest.param("groq", 429, error("Rate limit reached for model `x` on tokens per day (TPD): Limit 100000, Used 99000, Requested 1500. Please try again in 7m12s. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing", type="tokens", code="rate_limit_exceeded"), USAGE, STOP, 432, id="Groq: a day of tokens"),
    pytest.param("groq", 429, error("Rate limit reached for model `x` on requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in 2s. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing", type="requests", code="rate_limit_exceeded"), RATE, RETRY, 2, id="Groq: the address of its billing page is no limit"),
    pytest.param("groq", 498, error("Flex tier capacity exceeded", code="capacity_exceeded"), OVERLOADED, RETRY, None, id="Groq: flex capacity"),
    pytest.param("groq", 400, error("Failed to call a function. Please adjust your prompt. See 'failed_generation' for more details.", type="invalid_request_error", code="tool_use_failed"), GENERIC, RETRY, None, id="Groq: a tool call that did not parse"),
    pytest.param("groq", 400, error("The model `x` has been decommissioned and is no longer supported.", type="invalid_request_error", code="model_decommissioned"), CONFIG, STOP, None, id="Groq: a decommissioned model"),
    pytest.param("groq", 400, error("Organization has been restricted. Please reach out to support.", type="invalid_request_error", code="organization_restricted"), AUTH, STOP, None, id="Groq: a restricted organisation"),
    pytest.param("mistral", 429, {"object": "error", "message": "Service tier capacity exceeded for this model.", "type": "invalid_request_error", "code": "3505"}, OVERLOADED, RETRY, None, id="Mistral: capacity under 429"),
    pytest.param("mistral", 429, {"message": "Requests rate limit exceeded"}, RATE, RETRY, None, id="Mistral: a limit in one line"),
    pytest.param("mistral", 400, {"object": "error", "message": "Prompt contains 40906 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "type": "invalid_request_error", "code": "3051"}, CONTEXT, STOP, None, id="Mistral: the prompt does not fit"),
    pytest.param("mistral", 400, {"object": "error", "message": "Invalid model: foo", "type": "invalid_model", "code": "1500"}, CONFIG, STOP, None, id="Mistral: no such model"),
    pytest.param("mistral", 401, {"detail": "Unauthorized"}, AUTH, STOP, None, id="Mistral: a wrong key"),
    pytest.param("mistral", 400, {"object": "error", "message": "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant", "type": "invalid_request_message_order", "code": "3230"}, GENERIC, STOP, None, id="Mistral: roles out of order"),
    pytest.param("deepseek", 402, error("Insufficient Balance", type="unknown_error", code="invalid_request_error"), USAGE, STOP, None, id="DeepSeek: no balance"),
    pytest.param("deepseek", 401, error("Authentication Fails, Your api key: ****cdef is invalid", type="authentication_error", code="invalid_request_error"), AUTH, STOP, None, id="DeepSeek: a wrong key"),
    pytest.param("deepseek", 400, error("Content Exists Risk", type="invalid_request_error"), FILTER, STOP, None, id="DeepSeek: content at risk"),
    pytest.param("deepseek", 400, error("Model Not Exist", type="invalid_request_error"), CONFIG, STOP, None, id="DeepSeek: no such model"),
    pytest.param("deepseek", 200, {"choices": [{"finish_reason": "insufficient_system_resource"}]}, OVERLOADED, RETRY, None, id="DeepSeek: resources ran out"),
    pytest.param("deepseek", 400, error("The reasoning_content in the thinking mode must be passed back to the API.", type="invalid_request_error"), GENERIC, STOP, None, id="DeepSeek: reasoning is missing from the history"),
    pytest.param("xai", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***ab. You can obtain an API key from https://console.x.ai."}, AUTH, STOP, None, id="xAI: a wrong key as a 400"),
    pytest.param("xai", 403, {"code": "The caller does not have permission", "error": "Your newly created teams doesn't have any credits yet."}, USAGE, STOP, None, id="xAI: a team without credits"),
    pytest.param("xai", 429, {"code": "Some resource has been exhausted", "error": "Your team x has either used all available credits or reached its monthly spending limit."}, USAGE, STOP, None, id="xAI: credits are used up"),
    pytest.param("xai", 400, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 140000 tokens."}, CONTEXT, STOP, None, id="xAI: the prompt does not fit"),
    pytest.param("xai", 404, {"code": "Some requested entity was not found", "error": "The model grok-9 does not exist or your team does not have access to it."}, CONFIG, STOP, None, id="xAI: no such model"),
    pytest.param("cohere", 401, {"message": "invalid api token"}, AUTH, STOP, None, id="Cohere: a wrong key"),
    pytest.param("cohere", 429, {"message": "You are using a Trial key, which is limited to 40 API calls / minute."}, RATE, RETRY, None, id="Cohere: a trial's minute"),
    pytest.param("cohere", 429, {"message": "You are using a Trial key, which is limited to 1000 API calls / month."}, USAGE, STOP, None, id="Cohere: a trial's month"),
    pytest.param("cohere", 400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000."}, CONTEXT, STOP, None, id="Cohere: the prompt does not fit"),
    pytest.param("cohere", 404, {"message": "model 'foo' not found, make sure the correct model ID was used"}, CONFIG, STOP, None, id="Cohere: no such model"),
    pytest.param("together", 422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8000 `inputs` tokens and 512 `max_new_tokens`", type="invalid_request_error"), CONTEXT, STOP, None, id="Together: the prompt does not fit"),
    pytest.param("together", 404, error("Unable to access model x. Please visit https://api.together.ai/models to view the list of supported models.", type="invalid_request_error", code="model_not_available"), CONFIG, STOP, None, id="Together: no such model"),
    pytest.param("together", 402, error("Credit limit exceeded, please navigate to https://api.together.xyz/settings/billing", type="credit_limit"), USAGE, STOP, None, id="Together: no credit"),
    pytest.param("together", 503, error("The server is overloaded or not ready yet.", type="service_unavailable"), OVERLOADED, RETRY, None, id="Together: overloaded"),
    pytest.param("fireworks", 404, error("Model not found, inaccessible, and/or not deployed", code="NOT_FOUND"), CONFIG, STOP, None, id="Fireworks: no such model"),
    pytest.param("fireworks", 412, error("Account x is suspended, possibly due to reaching the monthly spending limit or failure to pay past invoices.", code="PRECONDITION_FAILED"), USAGE, STOP, None, id="Fireworks: an unpaid account"),
    pytest.param("fireworks", 400, error("The prompt is too long: 140000, model maximum context length: 131071"), CONTEXT, STOP, None, id="Fireworks: the prompt does not fit"),
    pytest.param("fireworks", 503, error("service overloaded, please try again later"), OVERLOADED, RETRY, None, id="Fireworks: overloaded"),
    pytest.param("ollama", 404, {"error": "model 'llama9' not found, try pulling it first"}, CONFIG, STOP, None, id="Ollama: no such model"),
    pytest.param("ollama", 503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, OVERLOADED, RETRY, None, id="Ollama: busy"),
    pytest.param("ollama", 400, {"error": "registry.ollama.ai/library/x does not support tools"}, CONFIG, STOP, None, id="Ollama: a model without tools"),
    pytest.param("ollama", 404, "404 page not found", CONFIG, STOP, None, id="Ollama: a wrong path"),
    pytest.param("ollama", 500, {"error": "llama runner process has terminated: exit status 2"}, GENERIC, RETRY, None, id="Ollama: the runner died"),
    pytest.param("vllm", 404, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "param": None, "code": 404}, CONFIG, STOP, None, id="vLLM: no such model"),
    pytest.param("vllm", 400, error('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', type="BadRequestError", code=400), CONFIG, STOP, None, id="vLLM: no tool parser"),
    pytest.param("vllm", 400, error("The decoder prompt (length 9000) is longer than the maximum model length of 8192.", type="BadRequestError", code=400), CONTEXT, STOP, None, id="vLLM: the prompt does not fit"),
    pytest.param("vllm", 500, {"object": "error", "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", "type": "InternalServerError", "code": 500}, GENERIC, RETRY, None, id="vLLM: the engine failed"),
    pytest.param("lmstudio", 400, {"error": "Cannot truncate prompt with n_keep (5000) >= n_ctx (4096)"}, CONTEXT, STOP, None, id="LM Studio: the prompt does not fit"),
    pytest.param("lmstudio", 404, error("No models loaded. Please load a model in the developer page.", type="invalid_request_error", code="model_not_found"), CONFIG, STOP, None, id="LM Studio: nothing loaded"),
    pytest.param("lmstudio", 400, {"error": "The model has crashed without additional information. (Exit code: 18446744072635812000)"}, GENERIC, RETRY, None, id="LM Studio: the model crashed"),
    pytest.param("llama.cpp", 400, error("the request exceeds the available context size. try increasing the context size or enable context shift", code=400, type="exceed_context_size_error", n_prompt_tokens=9000, n_ctx=8192), CONTEXT, STOP, None, id="llama.cpp: the prompt does not fit"),
    pytest.param("llama.cpp", 503, error("Loading model", code=503, type="unavailable_error"), OVERLOADED, RETRY, None, id="llama.cpp: still loading"),
    pytest.param("huggingface", 503, {"error": "Model x is currently loading", "estimated_time": 20.0}, OVERLOADED, RETRY, 20, id="Hugging Face: still loading"),
    pytest.param("huggingface", 402, {"error": "You have exceeded your monthly included credits for Inference Providers."}, USAGE, STOP, None, id="Hugging Face: a month's credits"),
    pytest.param("litellm", 400, error("Budget has been exceeded! Current cost: 10.1, Max budget: 10.0", type="budget_exceeded", code="400"), USAGE, STOP, None, id="LiteLLM: a budget"),
    pytest.param("litellm", 429, error("Crossed TPM / RPM / Max Parallel Request Limit. Hit RPM Limit, current rpm: 11, rpm limit: 10", type="None", code="429"), RATE, RETRY, None, id="LiteLLM: its own limit"),
    pytest.param("litellm", 401, error("Authentication Error, Invalid proxy server token passed. Received API Key = sk-...abcd, Key Hash (Token) =88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b. Unable to find token in cache or `LiteLLM_VerificationTokenTable`", type="token_not_found_in_db", code="401"), AUTH, STOP, None, id="LiteLLM: an unknown key"),
    pytest.param("litellm", 400, error("litellm.BadRequestError: LLM Provider NOT provided. Pass in the LLM provider you are trying to call.", code="400"), CONFIG, STOP, None, id="LiteLLM: no provider in the model's name"),
    pytest.param("litellm", 400, error("/chat/completions: Invalid model name passed in model=gpt-9. Call `/v1/models` to view available models for your key.", code="400"), CONFIG, STOP, None, id="LiteLLM: no such model"),
    pytest.param("litellm", 500, error("litellm.BadRequestError: AnthropicException - b'{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"prompt is too long: 210000 tokens > 200000 maximum\"}}'", code="500"), CONTEXT, STOP, None, id="LiteLLM: overflow wrapped in a 500"),
    pytest.param("litellm", 500, error("litellm.AuthenticationError: AuthenticationError: OpenAIException - Error code: 401 - {'error': {'message': 'Incorrect API key provided', 'code': 'invalid_api_key'}}", code="500"), AUTH, STOP, None, id="LiteLLM: a wrong key wrapped in a 500"),
    pytest.param("vercel", 402, error("Insufficient funds. Please add credits to your account to continue using AI services.", type="insufficient_funds"), USAGE, STOP, None, id="Vercel: no funds"),
    pytest.param("vercel", 403, error("AI Gateway requires a valid credit card on file to service requests.", type="customer_verification_required"), USAGE, STOP, None, id="Vercel: no card"),
    pytest.param("vercel", 429, error("Free credits temporarily have rate limits in place due to abuse.", type="rate_limit_exceeded"), RATE, RETRY, None, id="Vercel: limits on free credits"),
    pytest.param("vercel", 404, error("Model 'x/y' not found", type="model_not_found"), CONFIG, STOP, None, id="Vercel: no such model"),
    pytest.param("cloudflare", 429, {"type": "https://developers.cloudflare.com/errors/1015", "title": "Error 1015: You are being rate limited", "status": 429, "detail": "You are being rate-limited by the website owner's configuration.", "error_code": 1015, "error_name": "rate_limited", "retryable": True, "retry_after": 30}, RATE, RETRY, 30, id="Cloudflare: RFC 9457"),
    pytest.param("cloudflare", 403, "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>", CONFIG, STOP, None, id="Cloudflare: a challenge"),
    pytest.param("cloudflare", 403, "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>", CONFIG, STOP, None, id="Cloudflare: a block"),
    pytest.param("cloudflare", 524, "<!DOCTYPE html><html><head><title>api.x.com | 524: A timeout occurred</title></head></html>", TIMEOUT, RETRY, None, id="Cloudflare: a slow origin"),
    pytest.param("cloudflare", 530, "error code: 1033", TIMEOUT, RETRY, None, id="Cloudflare: an unreachable origin"),
    pytest.param("cloudflare", 429, {"errors": [{"message": "AiError: you have used up your daily free allocation of 10,000 neurons", "code": 4006}], "success": False}, USAGE, STOP, None, id="Workers AI: a day's allocation"),
    pytest.param("cloudflare", 429, {"errors": [{"message": "AiError: Capacity temporarily exceeded, please try again.", "code": 3040}], "success": False}, OVERLOADED, RETRY, None, id="Workers AI: no capacity"),
    pytest.param("nginx", 502, "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body></html>", TIMEOUT, RETRY, None, id="nginx: a bad gateway"),
    pytest.param("nginx", 504, "<html><head><title>504 Gateway Time-out</title></head></html>", TIMEOUT, RETRY, None, id="nginx: a gateway's timeout"),
    pytest.param("nginx", 413, "<html><head><title>413 Request Entity Too Large</title></head></html>", CONFIG, STOP, None, id="nginx: our proxy counts bytes"),
    pytest.param("nginx", 503, "upstream connect error or disconnect/reset before headers. reset reason: overflow", TIMEOUT, RETRY, None, id="Envoy: no upstream"),
    pytest.param("nginx", 503, "no healthy upstream", OVERLOADED, RETRY, None, id="Envoy: no healthy upstream"),
    pytest.param("moonshot", 429, error("You exceeded your current quota, please check your account balance", type="exceeded_current_quota_error"), USAGE, STOP, None, id="Moonshot: no balance"),
    pytest.param("moonshot", 429, error("Your account org-x request reached max concurrency: 1, please try again after 1 seconds", type="rate_limit_reached_error"), RATE, RETRY, 1, id="Moonshot: concurrency"),
    pytest.param("dashscope", 400, error("<400> InternalError.Algo.DataInspectionFailed: Input data may contain inappropriate content.", type="data_inspection_failed", code="data_inspection_failed"), FILTER, STOP, None, id="DashScope: inspection"),
    pytest.param("dashscope", 429, {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded, please try again later."}, RATE, RETRY, None, id="DashScope: throttled"),
    pytest.param("dashscope", 400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}, USAGE, STOP, None, id="DashScope: arrears"),
    pytest.param("github", 429, error("Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 41938 seconds before retrying.", code="RateLimitReached"), USAGE, STOP, 41938, id="GitHub Models: a day"),
    pytest.param("github", 413, error("Request body too large for gpt-4o model. Max size: 8000 tokens.", code="tokens_limit_reached"), CONTEXT, STOP, None, id="GitHub Models: the prompt does not fit"),
    pytest.param("copilot", 400, error("The requested model is not supported.", code="model_not_supported", param="model"), CONFIG, STOP, None, id="Copilot: no such model"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "retryable", "hint"), OPENAI)
def test_openai(
    ask: Ask, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, "openai", status, body, kind, retryable=retryable, hint=hint)


@pytest.mark.parametrize(("status", "body", "kind", "retryable", "hint"), AZURE)
def test_azure(
    ask: Ask, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, "azure", status, body, kind, retryable=retryable, hint=hint)


@pytest.mark.parametrize(("status", "body", "kind", "retryable", "hint"), ANTHROPIC)
def test_anthropic(
    ask: Ask, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, "anthropic", status, body, kind, retryable=retryable, hint=hint)


@pytest.mark.parametrize(("status", "body", "kind", "retryable", "hint"), BEDROCK)
def test_bedrock(
    ask: Ask, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, "bedrock", status, body, kind, retryable=retryable, hint=hint)


@pytest.mark.parametrize(("status", "body", "kind", "retryable", "hint"), GOOGLE)
def test_google(
    ask: Ask, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, "gemini", status, body, kind, retryable=retryable, hint=hint)


@pytest.mark.parametrize(("status", "body", "kind", "retryable", "hint"), OPENROUTER)
def test_openrouter(
    ask: Ask, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, "openrouter", status, body, kind, retryable=retryable, hint=hint)


@pytest.mark.parametrize(("provider", "status", "body", "kind", "retryable", "hint"), OTHERS)
def test_others(
    ask: Ask, provider: str, status: int | None, body: object, kind: ErrorKind, retryable: bool, hint: float | None
) -> None:
    check(ask, provider, status, body, kind, retryable=retryable, hint=hint)
