"""Machine codes, the types of error objects, reasons to stop, and exception classes: one table, three strengths.

A class name is a code that a library wrote, so `RateLimitError`, `rate_limit_error` and `RateLimitExceeded`
stand in one row.  Codes are compared folded (see `evidence.fold`): case, separators and the endings "Exception",
"Error" and "Fault" do not matter.

- `DECISIVE` codes say exactly what happened; they beat numbers, statuses and words.
- `FIRM` codes name a family; a sentence may know better (a spend cap calls itself `rate_limit_error`).
- `SOFT` codes and classes count only where there is no HTTP error status.

`KINDRED` holds stems, for the codes that vendors have yet to invent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from turnkeeper.errors import ErrorKind, Situation
from turnkeeper_worker.failures.evidence import fold
from turnkeeper_worker.failures.gates import RETRY, STOP


@dataclass(frozen=True, slots=True)
class CodeRule:
    """Codes that mean the same."""

    name: str
    kind: ErrorKind
    retryable: bool
    codes: str
    """Separated by white space, as the vendors write them."""
    situation: Situation | None = None


DECISIVE = (
    CodeRule("switched off", ErrorKind.PROVIDER_DISABLED, STOP, "provider_disabled"),
    # OpenAI, Azure, Anthropic, Bedrock, Gemini, Groq, DashScope, Volcengine, finish reasons of all.
    CodeRule(
        "content policy",
        ErrorKind.CONTENT_FILTER,
        STOP,
        """content_filter content_filtered ResponsibleAIPolicyViolation content_policy_violation
        ContentPolicyViolationError invalid_prompt bio_policy cyber_policy cyber_policy_violation
        misalignment_policy_violation moderation_blocked image_content_policy_violation safety_violation
        data_inspection_failed DataInspectionFailed SensitiveContentDetected
        InputTextSensitiveContentDetected OutputTextSensitiveContentDetected content_moderation
        prompt_blocked unsafe_content finish:content_filter finish:content_filtered finish:safety
        finish:sensitive finish:refusal finish:guardrail_intervened finish:prohibited_content
        finish:blocklist finish:spii finish:recitation finish:image_safety finish:policy_violation
        finish:moderation finish:ERROR_TOXIC""",
    ),
    CodeRule(
        "context overflow",
        ErrorKind.CONTEXT_OVERFLOW,
        STOP,
        """context_length_exceeded context_exceeded context_window_exceeded ContextWindowExceededError
        ContextLengthExceededError prompt_too_long input_too_long max_context_exceeded
        exceed_context_size_error exceed_context_size context_overflow tokens_limit_reached
        max_tokens_exceeded input_token_limit_exceeded too_many_input_tokens
        finish:model_context_window_exceeded finish:context_length_exceeded finish:model_length""",
    ),
    CodeRule(
        "spend, credit or plan",
        ErrorKind.USAGE_LIMIT,
        STOP,
        """insufficient_quota usage_limit_reached usage_limit_exceeded usage_not_included billing_error
        billing_hard_limit_reached billing_not_active BILLING_DISABLED enforced_spend_limit_reached
        contract_spend_limit_reached spend_limit_reached spend_limit_exceeded spending_limit_reached
        workspace_spend_limit_reached insufficient_credits insufficient_balance insufficient_funds
        insufficient_user_quota credit_limit credits_exhausted credit_exhausted credit_balance_too_low
        credits_required payment_required PaymentRequiredError budget_exceeded BudgetExceededError
        ExceededBudget exceeded_current_quota exceeded_current_quota_error quota_exhausted QUOTA_EXHAUSTED
        daily_limit_exceeded monthly_limit_exceeded weekly_limit_exceeded ServiceQuotaExceededException
        Arrearage AccountOverdueError subscription_required subscription_expired
        customer_verification_required blocked_api_access organization_quota_exceeded account_quota_exceeded
        key_limit_exceeded INSUFFICIENT_G1_CREDITS_BALANCE RequestLimitExceededPerDay""",
    ),
    CodeRule(
        "no key",
        ErrorKind.MISSING_KEY,
        STOP,
        """NoCredentialsError PartialCredentialsError missing_api_key MissingApiKeyError api_key_missing
        LoadAPIKeyError""",
    ),
    CodeRule(
        "credentials",
        ErrorKind.AUTH,
        STOP,
        """invalid_api_key API_KEY_INVALID API_KEY_EXPIRED InvalidApiKey incorrect_api_key expired_api_key
        invalid_key invalid_token token_expired token_invalid expired_token ExpiredTokenException
        UnrecognizedClientException InvalidClientTokenId InvalidSignatureException SignatureDoesNotMatch
        MissingAuthenticationTokenException IncompleteSignature account_deactivated account_disabled
        organization_restricted organization_disabled deactivated_workspace CONSUMER_SUSPENDED
        CONSUMER_INVALID API_KEY_SERVICE_BLOCKED API_KEY_HTTP_REFERRER_BLOCKED API_KEY_IP_ADDRESS_BLOCKED
        ACCESS_TOKEN_EXPIRED ACCESS_TOKEN_SCOPE_INSUFFICIENT CREDENTIALS_MISSING IAM_PERMISSION_DENIED
        invalid_authentication invalid_authentication_error invalid_issuer mismatched_organization
        missing_scope access_terminated TokenRefreshRequired SSOTokenLoadError UnauthorizedSSOTokenError
        CredentialRetrievalError RefreshError DefaultCredentialsError ClientAuthenticationError
        access_terminated_error invalid_grant""",
    ),
    CodeRule(
        "model or deployment",
        ErrorKind.CONFIG,
        STOP,
        """model_not_found ModelNotFound ModelNotFoundError model_not_available model_not_supported
        unsupported_model invalid_model unknown_model InvalidModel model_decommissioned model_terms_required
        ModelDeprecated DeploymentNotFound DeploymentModelNotSupported OperationNotSupported invalid_engine
        no_such_model InvalidEndpointOrModel.NotFound model_access_denied key_model_access_denied
        team_model_access_denied org_model_access_denied no_available_model no_providers_available
        no_endpoints_found""",
    ),
    CodeRule(
        "region, organisation or service",
        ErrorKind.CONFIG,
        STOP,
        """unsupported_country_region_territory data_residency_mismatch SERVICE_DISABLED
        LOCATION_UNSUPPORTED ip_not_authorized invalid_organization UserProjectInvalid accessNotConfigured
        unknown_url invalid_url NoSuchEndpoint EndpointConnectionInvalid MissingRegion NoRegionError
        InvalidSubscription""",
    ),
    CodeRule(
        "capacity",
        ErrorKind.OVERLOADED,
        RETRY,
        """overloaded_error overloaded server_is_overloaded server_overloaded ServerOverloaded
        model_overloaded engine_overloaded engine_overloaded_error MODEL_CAPACITY_EXHAUSTED
        capacity_exceeded no_capacity capacity_exhausted insufficient_capacity InsufficientCapacity
        ModelNotReadyException model_loading ModelLoading model_cold_start slow_down SlowDown system_busy
        server_busy too_busy service_busy service_overloaded system_overloaded OverloadedError
        finish:insufficient_system_resource conversation_locked""",
    ),
    # What a model happened to sample may be well-formed the next time.
    CodeRule(
        "malformed tool call",
        ErrorKind.GENERIC,
        RETRY,
        """ModelStreamErrorException tool_use_failed json_validate_failed finish:malformed_tool_use
        finish:malformed_model_output finish:malformed_function_call finish:unexpected_tool_call""",
    ),
    CodeRule(
        "cut by length",
        ErrorKind.GENERIC,
        STOP,
        "finish:max_output_tokens finish:max_tokens finish:length finish:max_messages",
        Situation.CUT_BY_LENGTH,
    ),
)

FIRM = (
    # Bedrock sends its conflicts as 400; what was in the way is gone a moment later.
    CodeRule("conflict", ErrorKind.GENERIC, RETRY, "ConflictException conflict_error ConflictError"),
    CodeRule(
        "rate limit code",
        ErrorKind.RATE_LIMIT,
        RETRY,
        """rate_limit_error rate_limit rate_limited rate_limit_exceeded rateLimitExceeded
        RATE_LIMIT_EXCEEDED RateLimitReached rate_limit_reached rate_limit_reached_error
        userRateLimitExceeded RESOURCE_EXHAUSTED too_many_requests TooManyRequestsException
        too_many_requests_error ThrottlingException Throttling ThrottledException Throttling.RateQuota
        Throttling.AllocationQuota Throttling.User RequestThrottled ramp_limit_exceeded
        upstream_provider_shared_pool concurrency_limit_exceeded max_parallel_requests
        requests_limit_exceeded tpm_limit_exceeded rpm_limit_exceeded RequestBurstTooFast
        LimitExceededException limit_requests limit_burst_rate ModelAccountTpmRateLimitExceeded
        ModelAccountRpmRateLimitExceeded EndpointTPMExceeded EndpointRPMExceeded GatewayRateLimitError
        throttling_error""",
    ),
    CodeRule(
        "auth code",
        ErrorKind.AUTH,
        STOP,
        """authentication_error authentication_failed AuthenticationError AuthError unauthenticated
        unauthorized UNAUTHENTICATED UnauthorizedException UnauthorizedError permission_error
        PermissionDenied PermissionDeniedError PERMISSION_DENIED AccessDeniedException AccessDenied
        access_denied forbidden ForbiddenException not_authorized auth_error GatewayAuthenticationError
        unauthorized_error""",
    ),
    CodeRule(
        "settings code",
        ErrorKind.CONFIG,
        STOP,
        """unsupported_parameter unsupported_value unknown_parameter invalid_value invalid_type
        missing_required_parameter invalid_function_parameters invalid_json_schema invalid_schema
        unrecognized_parameter extra_forbidden literal_error string_above_max_length integer_above_max_value
        integer_below_min_value decimal_above_max_value decimal_below_min_value array_above_max_length
        unsupported_file image_too_large invalid_image invalid_image_format invalid_base64 invalid_image_url
        UnsupportedParamsError MethodNotAllowed InvalidParameter InvalidParameterValue ParamValidationError
        GatewayModelNotFoundError UnsupportedProtocol InvalidURL TooManyRedirects CertificateError
        SSLCertVerificationError ClientConnectorCertificateError ProfileNotFound UnknownServiceError""",
    ),
)

SOFT = (
    CodeRule(
        "transport class",
        ErrorKind.TIMEOUT,
        RETRY,
        """ConnectError ConnectTimeout ReadError ReadTimeout WriteError WriteTimeout CloseError PoolTimeout
        RemoteProtocolError LocalProtocolError ProxyError NetworkError TransportError TimeoutException
        ConnectTimeoutError ReadTimeoutError NewConnectionError MaxRetryError ConnectionError
        ConnectionTimeout ConnectionTimeoutError ConnectionClosedError ConnectionClosed ConnectionClosedOK
        ConnectionResetError ConnectionAbortedError ConnectionRefusedError BrokenPipeError TimeoutError
        Timeout gaierror SSLError SSLEOFError SSLZeroReturnError SSLWantReadError EndOfStream
        ClosedResourceError BrokenResourceError IncompleteReadError IncompleteRead APIConnectionError
        APITimeoutError APIConnectionTimeoutError ServerDisconnectedError ServerTimeoutError
        SocketTimeoutError ServerConnectionError ClientPayloadError ClientOSError ClientConnectorError
        ClientConnectionError ClientConnectorDNSError ClientConnectorSSLError ClientConnectionResetError
        ClientProxyConnectionError TransferEncodingError ContentLengthError ChunkedEncodingError
        ContentDecodingError DecodingError ProtocolError InvalidChunkLength StreamConsumed StreamClosedError
        StreamReset StreamError ConnectionTerminated EndpointConnectionError HTTPClientError
        ResponseStreamingError ConnectionNotAvailable ServiceUnavailableException ServiceUnavailableError
        service_unavailable service_unavailable_error ServiceUnavailable unavailable UNAVAILABLE
        unavailable_error timeout timeout_error request_timeout DEADLINE_EXCEEDED DeadlineExceeded
        gateway_timeout bad_gateway GatewayTimeout BadGateway ModelTimeoutException vector_store_timeout
        upstream_timeout network_error connection_error stream_read_error stream_disconnected
        upstream_disconnected finish:network_error SoftTimeLimitExceeded RequestTimeout
        RequestTimeoutException MidStreamFallbackError JSONDecodeError""",
    ),
    CodeRule(
        "server code",
        ErrorKind.GENERIC,
        RETRY,
        """server_error internal_server_error internal_error internal INTERNAL InternalServerError api_error
        InternalServerException InternalFailure InternalServiceError GatewayInternalServerError
        ModelErrorException upstream_error provider_error processing_error backend_error backendError
        unknown_error UNKNOWN finish:error finish:other response.failed ABORTED""",
    ),
    CodeRule(
        "refused request",
        ErrorKind.GENERIC,
        STOP,
        """invalid_request_error BadRequestError ValidationException bad_request INVALID_ARGUMENT
        FAILED_PRECONDITION UnprocessableEntityError not_found_error NotFoundError NOT_FOUND""",
    ),
)


KINDRED = (
    CodeRule(
        "kindred to content policy", ErrorKind.CONTENT_FILTER, STOP, "content_filter content_policy moderation"
    ),
    CodeRule(
        "kindred to context overflow",
        ErrorKind.CONTEXT_OVERFLOW,
        STOP,
        "context_length context_window context_overflow context_size prompt_too_long input_too_long",
    ),
    CodeRule(
        "kindred to spend, credit or plan",
        ErrorKind.USAGE_LIMIT,
        STOP,
        """insufficient_quota quota_exhausted credits_exhausted out_of_credits insufficient_credit
        insufficient_balance insufficient_fund spend_limit spending_limit cost_limit budget_exceeded
        usage_limit daily_limit weekly_limit monthly_limit payment_required billing_hard billing_limit
        billing_not billing_disabled""",
    ),
    CodeRule(
        "kindred to credentials",
        ErrorKind.AUTH,
        STOP,
        "invalid_api_key api_key_invalid api_key_expired token_expired",
    ),
    CodeRule(
        "kindred to model or deployment",
        ErrorKind.CONFIG,
        STOP,
        "model_not_found model_not_supported unsupported_model invalid_model model_not_available",
    ),
    CodeRule("kindred to capacity", ErrorKind.OVERLOADED, RETRY, "overloaded no_capacity capacity_exceeded"),
    CodeRule("kindred to rate limit", ErrorKind.RATE_LIMIT, RETRY, "rate_limit throttl too_many_requests"),
)
"""Stems: a code that no row names, but that holds one of these, is a sibling of those that are named."""

Index: TypeAlias = Mapping[str, tuple[int, CodeRule]]
"""Folded code → the rule's place in its table, and the rule."""


def index(rules: Iterable[CodeRule]) -> Index:
    """Map each folded code to its rule and the rule's place; of two rules for one code, the earlier stands."""
    found: dict[str, tuple[int, CodeRule]] = {}
    for place, rule in enumerate(rules):
        for code in rule.codes.split():
            found.setdefault(fold(code), (place, rule))
    return found
