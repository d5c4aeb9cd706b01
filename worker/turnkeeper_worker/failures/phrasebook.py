"""Sentences that say what no code says, in the words of providers and gateways.

The table is read from the top, and the first phrase found decides.
"""

from turnkeeper.errors import ErrorKind, Situation
from turnkeeper_worker.failures.chains import ELSEWHERE
from turnkeeper_worker.failures.gates import (
    RETRY,
    STOP,
    PhraseRule,
    PhraseTable,
    absent,
    account,
    always,
    busy,
    credentials,
    refused_outright,
    silent,
    throttled,
    unless_elsewhere,
    unless_throttled,
    unless_unauthorized,
)
from turnkeeper_worker.failures.words import phrases

PHRASES = PhraseTable(
    PhraseRule(
        "history refused",
        ErrorKind.GENERIC,
        STOP,
        always,
        phrases(
            """
            no tool output found for function call | no tool call found for function call output
            no tool call found for | provided without its required | items are not persisted when store
            tool_call_ids did not have response messages | tool_calls must be followed by tool messages
            must be a response to a preceding message with tool_calls
            must be a response to a preceeding message with tool_calls
            tool_use ids were found without tool_result | tool_use … without … tool_result
            unexpected tool_use_id | unexpected tool_result | tool_use ids must be unique
            each tool_use must have | missing corresponding tool response
            not the same number of function calls and responses | number of function response parts
            function call turn comes immediately after | function response turn comes immediately after
            missing a thought_signature | thought_signature … invalid | thought signature is not valid
            invalid thought signature | corrupted thought signature | reasoning_content is missing
            missing reasoning_content | reasoning_content … must be passed back
            reasoning_content in the thinking mode must | expected thinking or redacted_thinking
            must start with a thinking block | thinking blocks … cannot be modified
            invalid signature in thinking block | signature in thinking
            encrypted content … could not be verified | encrypted_content … could not be verified
            could not decrypt | invalid_encrypted_content | different azure openai resource
            roles must alternate | text content blocks must be non-empty | must have non-empty content
            final assistant content cannot end with trailing whitespace
            messages must end with a user message | does not support assistant message prefill
            expected last role user or tool | unexpected role
            """
        ),
        Situation.REPLAY,
    ),
    PhraseRule(
        "prompt longer than the model",
        ErrorKind.CONTEXT_OVERFLOW,
        STOP,
        always,
        phrases(
            """
            prompt is too long | prompt too long | prompt is longer than | input is too long
            input too long | input is longer than | input … is longer than | prompt … is longer than
            maximum context length | max context length | maximum model length | maximum prompt length
            maximum context window | maximum input length | maximum allowed input length
            maximum sequence length | maximum number of tokens allowed | model only supports up to
            context length exceeded | context length is only | context length of only
            context_length_exceeded | exceed* … context length | exceed* … context limit
            exceed* … context window | exceed* … context size | exceed* … the available context
            content: string too long | text: string too long | output: string too long
            exceed* … token limit | configured limit of | exceed* … tokens allowed
            longer than … context | too large for model with … context | too long for … context
            larger than … context | greater than the context length | overflow* … context
            context the overflows | context window is full | context window exceeded
            context size has been exceeded | ran out of room in the model | tokens must be <=
            tokens + … must be <= | max_new_tokens must be | too many input tokens
            total number of tokens in the prompt cannot exceed | reduce the length of the messages
            reduce the length of the input | reduce the length of your prompt | reduce your prompt
            context window exceeds | context size is | prompt … exceed* … the limit
            input … exceed* … the limit | tokens … exceed* … the limit | token count … exceed*
            exceed* … max_model_len | exceed* … max_seq_len | exceed* … max length
            range of input length | 超长 | 长度超限 | 上下文长度 | 最大长度 | input tokens, limit is
            request body too large for | n_ctx | n_keep | maximum tokens … exceeded | input token count
            """
        ),
    ),
    PhraseRule(
        "short of capacity",
        ErrorKind.OVERLOADED,
        RETRY,
        busy,
        phrases(
            """
            overloaded | at capacity | over capacity | no capacity | out of capacity | capacity exceeded
            capacity … exceeded | exceeded capacity | capacity reached | capacity constraints
            insufficient capacity | not enough capacity | no available capacity | no capacity available
            capacity available | high demand | high load | heavy load | high traffic | peak load
            server is busy | server busy | servers are busy | service is busy | system is busy
            system busy | too busy | is busy | currently loading | loading model | model is loading
            still loading | not ready for inference | is not ready | maximum pending requests
            queue is full | no healthy upstream | no available workers | currently processing too many
            another process is currently operating on this conversation | 负载 | 过载 | 繁忙
            """
        ),
    ),
    # Refusals that a second attempt can cure: a link was not fetched in time, a running response went stale.
    PhraseRule(
        "link not fetched in time",
        ErrorKind.TIMEOUT,
        RETRY,
        always,
        phrases(
            """
            timeout while downloading | timed out while downloading | timeout while fetching
            timed out while fetching
            """
        ),
    ),
    PhraseRule(
        "model crashed",
        ErrorKind.GENERIC,
        RETRY,
        always,
        phrases(
            """
            model has crashed | model crashed | model unloaded | runner has unexpectedly stopped
            runner process
            """
        ),
    ),
    PhraseRule("resumed too late", ErrorKind.GENERIC, RETRY, always, phrases("can no longer be streamed")),
    PhraseRule(
        "window of a minute",
        ErrorKind.RATE_LIMIT,
        RETRY,
        throttled,
        phrases(
            """
            per minute | per-minute | per_minute | per min | per second | / minute | /minute | /min
            """
        ),
    ),
    PhraseRule(
        "allowance used up",
        ErrorKind.USAGE_LIMIT,
        STOP,
        always,
        phrases(
            """
            insufficient_quota | credit balance | insufficient balance | insufficient credit*
            insufficient funds | insufficient account balance | balance is insufficient
            balance not enough | not enough credits | not enough balance | out of credits | no credits
            any credits | any credits yet | more credits | add credits | available credits
            credits … exhausted | credits … depleted | credits … used | credits have been
            purchase credits | credit limit | credit card | can only afford | negative balance
            usage limit | usage limits | out of extra usage | extra usage is required | enable overages
            quota reached | quota has been used up | quota … exhausted | exhausted your … quota
            exhausted … free | exhausted your daily | exhausted your monthly | free allocation
            used up your | spend limit* | spending limit* | spend cap | spending cap | hard limit
            monthly limit | monthly quota | monthly usage | monthly api usage | monthly budget
            weekly limit | 5-hour limit | session limit | daily limit | daily quota | daily usage
            budget has been exceeded | budget exceeded | exceeded budget | exceeded … budget
            over budget | payment required | billing is not active | billing not active
            billing details … not active | account is not active | enable billing
            requires billing to be enabled | billing to be enabled | billing has been disabled
            billing account … disabled | billing limit | plan does not include | overdue | in arrears
            arrearage | recharge | top up | 余额不足 | 欠费 | 额度
            """
        ),
    ),
    PhraseRule(
        "money words",
        ErrorKind.USAGE_LIMIT,
        STOP,
        unless_throttled,
        phrases(
            """
            billing plan | billing details | billing issue | check your billing | payment information
            quota exceeded | exceed* … quota | your quota
            """
        ),
    ),
    PhraseRule(
        "money word",
        ErrorKind.USAGE_LIMIT,
        STOP,
        account,
        phrases("quota | billing | credits"),
    ),
    PhraseRule(
        "no key configured",
        ErrorKind.MISSING_KEY,
        STOP,
        silent,
        phrases(
            """
            api_key client option must be set | client option must be set | api key must be set
            api_key must be set | missing credentials | could not resolve authentication method
            unable to locate credentials | could not load credentials | no credentials found
            no api key found | no api key provided | no api key was provided | no api key configured
            no api key set | api key is missing | missing api key | missing an api key
            missing key inputs argument | api key is not set | api_key is not set
            api key not configured | api key not set | api key not found
            default credentials were not found | could not find default credentials
            illegal header value bbearer | set the … environment variable
            setting the … environment variable | add an environment variable
            """
        ),
    ),
    PhraseRule(
        "content policy words",
        ErrorKind.CONTENT_FILTER,
        STOP,
        unless_throttled,
        phrases(
            """
            content management policy | content filter* | content_filter | content policy
            content moderation | content exists risk | content safety | usage policy | usage policies
            terms of service … violat* | safety system | safety filter* | safety settings
            blocked by … safety | blocked due to safety | blocked by … policy | prompt was blocked
            response was blocked | violat* … policy | violat* … policies | policy violation | flagged as
            flagged by | flagged for | was flagged | requires moderation | inappropriate content
            sensitive content | prohibited content | high risk | 敏感
            """
        ),
    ),
    PhraseRule(
        "credentials rejected",
        ErrorKind.AUTH,
        STOP,
        unless_elsewhere,
        phrases(
            """
            invalid api key | invalid_api_key | incorrect api key | api key not valid
            api key is invalid | api key … is invalid | api key … invalid | api key is not valid
            api key expired | api key has expired | api key … expired | api key … disabled
            api key … revoked | invalid x-api-key | invalid subscription key | invalid api token
            invalid access token | invalid bearer token | invalid credential* | invalid authentication
            invalid proxy server token | wrong api key | expired key | expired token
            token … is expired | token … has expired | token … is invalid | token expired
            token has expired | no auth credentials | no cookie auth credentials
            didnt provide an api key | did not provide an api key | missing authorization header
            no api key passed | security token included in the request | cached credentials
            get credentials | refresh credentials | failed to retrieve credentials
            reauthentication is needed | authentication fail* | authentication error
            authentication token | user not found | organization has been disabled
            account has been deactivated | account has been suspended | account … suspended
            permission denied | 无效的令牌 | 令牌
            """
        ),
    ),
    PhraseRule(
        "credentials word",
        ErrorKind.AUTH,
        STOP,
        credentials,
        phrases(
            """
            authentication | unauthorized | unauthenticated | not authorized | not authenticated
            invalid token
            """
        ),
    ),
    PhraseRule(
        "model rejected",
        ErrorKind.CONFIG,
        STOP,
        unless_unauthorized,
        phrases(
            """
            invalid model | unknown model | unsupported model | model_not_found | model not found
            model … not found | models … not found | model … does not exist | model … doesnt exist
            model … not exist | no such model | not a valid model | model identifier is invalid
            model … is not supported | model … not supported | model … isnt supported
            model … decommissioned | model … deprecated | model … retired | model … end of life
            model … not deployed | model … no longer | model is required | you must provide a model
            no models loaded | no model loaded | try pulling it first | does not have access to model
            not allowed to access model | no access to model | team not allowed to access
            key not allowed to access | llm provider not provided | deployment … does not exist
            deployment … not found | not found for api version | no endpoints found
            no endpoints available | no allowed providers | on-demand throughput | inference profile
            malformed config* | invalid configuration | not supported for generatecontent
            unavailable in your region | not available in your region | not available in your country
            region … not supported | country … not supported | location is not supported | data policy
            has not been used in project | certificate verify failed | certificate_verify_failed
            illegal header value | missing an http:// or https:// protocol | unsupported protocol
            invalid url
            """
        ),
    ),
    PhraseRule(
        "nothing at this address",
        ErrorKind.CONFIG,
        STOP,
        absent,
        ELSEWHERE,
    ),
    PhraseRule(
        "settings rejected",
        ErrorKind.CONFIG,
        STOP,
        refused_outright,
        phrases(
            """
            unsupported parameter* | unsupported value | unsupported country | unknown parameter
            unknown field | unknown name | unrecognized request argument* | unrecognized field
            invalid value for | invalid value | invalid parameter | invalid schema | invalid type for
            invalid json schema | invalid json payload | invalid url | unknown request url
            missing required parameter | missing required field | missing field | field required
            extra inputs are not permitted | model … not available | model … unavailable
            is not supported | are not supported | not supported | not supported with | does not support
            doesnt support | unsupported image | supports at most | must be verified
            maximum allowed number of output tokens | max_tokens is too large | max_tokens … must be
            max_tokens: … > | at least one of the image dimensions | could not process image
            page not found | malformed input request | not yet available for this subscription
            enable-auto-tool-choice | tool choice requires | virtual network/firewall
            used cloudflare to restrict access | attention required | just a moment
            you have been blocked | request entity too large
            """
        ),
    ),
    PhraseRule(
        "throttled words",
        ErrorKind.RATE_LIMIT,
        RETRY,
        throttled,
        phrases(
            """
            rate limit* | rate-limit* | rate_limit* | ratelimit* | too many requests | too many tokens
            too many concurrent | too many connections | throttl* | resource has been exhausted
            resource exhausted | slow down | concurrency limit | concurrent request*
            no deployments available | being limited | rate increased too quickly | 速率 | 并发 | 频率
            """
        ),
    ),
    PhraseRule("forbidden", ErrorKind.AUTH, STOP, silent, phrases("forbidden | access denied")),
)
