"""What people and programs are told when a turn fails: the kinds, the ChatError, and all of its copy.

Every sentence that a person may read about a failure stands in the tables of this module, twice per kind:

- *retry copy* stands beside a countdown.  It states a fact; it has no status code and no advice.
- *terminal copy* ends a turn.  It states the fact and one action.

No judgement is made here; the worker's `failures` package decides which kind a failure has.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class ErrorKind(StrEnum):
    """What went wrong, in the one word that decides how it is handled and shown."""

    OVERLOADED = "overloaded"
    RATE_LIMIT = "rate_limit"
    TIMEOUT = "timeout"
    STARTUP_TIMEOUT = "startup_timeout"
    STREAM_SILENCE_TIMEOUT = "stream_silence_timeout"
    AUTH = "auth"
    CONFIG = "config"
    CONTEXT_OVERFLOW = "context_overflow"
    USAGE_LIMIT = "usage_limit"
    MISSING_KEY = "missing_key"
    PROVIDER_DISABLED = "provider_disabled"
    CONTENT_FILTER = "content_filter"
    GENERIC = "generic"


class Situation(StrEnum):
    """A failure that its kind's terminal copy would describe wrongly."""

    CANCELLED = "cancelled"
    """We cancelled the turn."""
    DEADLINE = "deadline"
    """Our own deadline ran out."""
    EMPTY = "empty"
    """The provider ended properly and said nothing."""
    CUT_BY_LENGTH = "cut_by_length"
    """The answer reached the limit of output tokens."""
    REPLAY = "replay"
    """The provider refused the history that we sent, which no setting and no payment can mend."""
    CHAIN_LOST = "chain_lost"
    """The provider no longer holds the response that the request continued from."""
    RESPONSE_GONE = "response_gone"
    """The provider no longer holds the response that it was working on."""
    POISON = "poison"
    """Worker after worker died while it ran the turn."""
    UNKNOWN_PROVIDER = "unknown_provider"
    """The chat names a provider that is not configured."""
    OWN_LIMIT = "own_limit"
    """What the owner may use in this period is used up, by our own count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The words of one kind.  `{provider}` is the provider's display name."""

    title: str
    """Heads the error's card."""
    label: str
    """One or two words for a badge or a table."""
    retry: str
    """Whether it is retried, for the docs."""
    fact: str
    """The retry copy, and the first sentence of the terminal copy."""
    action: str
    """The second sentence of the terminal copy."""


COPY: dict[ErrorKind, Copy] = {
    ErrorKind.OVERLOADED: Copy(
        title="Provider overloaded",
        label="Overloaded",
        retry="yes",
        fact="{provider} is short of capacity.",
        action="Choose another model to continue now.",
    ),
    ErrorKind.RATE_LIMIT: Copy(
        title="Rate limit reached",
        label="Rate limit",
        retry="yes, unless it can never fit",
        fact="{provider} is limiting the rate of requests.",
        action="Wait a minute before you send the next message.",
    ),
    ErrorKind.TIMEOUT: Copy(
        title="Connection to the provider lost",
        label="Connection",
        retry="yes, unless the deadline was ours",
        fact="The connection to {provider} failed before the answer was complete.",
        action="Resend the message to start over.",
    ),
    ErrorKind.STARTUP_TIMEOUT: Copy(
        title="No answer in time",
        label="Slow start",
        retry="yes",
        fact="{provider} did not begin to answer in time.",
        action="Choose a faster model.",
    ),
    ErrorKind.STREAM_SILENCE_TIMEOUT: Copy(
        title="The answer stopped",
        label="Silence",
        retry="yes",
        fact="{provider} fell silent in the middle of the answer.",
        action="Resend the message to start over.",
    ),
    ErrorKind.AUTH: Copy(
        title="Credentials rejected",
        label="Credentials",
        retry="no",
        fact="{provider} rejected the credentials.",
        action="Check the API key and what it is permitted to do.",
    ),
    ErrorKind.CONFIG: Copy(
        title="Settings rejected",
        label="Settings",
        retry="no",
        fact="{provider} rejected the model or one of its settings.",
        action="Check the configuration of the model.",
    ),
    ErrorKind.CONTEXT_OVERFLOW: Copy(
        title="Conversation too long",
        label="Too long",
        retry="no, though compaction may follow",
        fact="The conversation is longer than {provider} accepts.",
        action="Shorten the conversation.",
    ),
    ErrorKind.USAGE_LIMIT: Copy(
        title="Allowance used up",
        label="Usage limit",
        retry="no",
        fact="The quota or credit with {provider} is used up.",
        action="Check the plan and its billing.",
    ),
    ErrorKind.MISSING_KEY: Copy(
        title="No API key",
        label="No key",
        retry="no",
        fact="No API key is configured for {provider}.",
        action="Ask an administrator to add one.",
    ),
    ErrorKind.PROVIDER_DISABLED: Copy(
        title="Provider switched off",
        label="Switched off",
        retry="no",
        fact="An operator has switched {provider} off.",
        action="Choose a model of another provider.",
    ),
    ErrorKind.CONTENT_FILTER: Copy(
        title="Declined by policy",
        label="Declined",
        retry="no",
        fact="{provider} declined to answer under its content policy.",
        action="Rephrase the message.",
    ),
    ErrorKind.GENERIC: Copy(
        title="The answer failed",
        label="Failed",
        retry="as the facts say",
        fact="{provider} could not complete the answer.",
        action="Tell an administrator if it happens again.",
    ),
}

SITUATIONS: dict[Situation, str] = {
    Situation.CANCELLED: "The turn was cancelled before the answer was complete. Send a message to continue.",
    Situation.DEADLINE: "The answer took longer than a turn may last. Ask for less in one message.",
    Situation.EMPTY: "{provider} ended its answer without saying anything. Rephrase the message.",
    Situation.CUT_BY_LENGTH: "{provider} reached the limit for one answer. Ask for a shorter one.",
    Situation.REPLAY: (
        "{provider} refused the history of this conversation; settings and billing are not the cause. "
        "Continue in a new chat."
    ),
    Situation.RESPONSE_GONE: (
        "{provider} lost the answer before it was complete. Resend the message to start over."
    ),
    Situation.POISON: "Every worker that took this turn died of it. Tell an administrator.",
    Situation.UNKNOWN_PROVIDER: "No provider {provider} is configured. Choose another model.",
    Situation.OWN_LIMIT: "The usage limit for this period is reached. Wait until the next one begins.",
    Situation.CHAIN_LOST: (
        "{provider} no longer holds the stored part of this conversation. Resend the message to start over."
    ),
}

NAMELESS = "the AI provider"

DISPLAY_NAMES: dict[str, str] = {
    "anthropic": "Anthropic",
    "azure": "Azure OpenAI",
    "azure-openai": "Azure OpenAI",
    "bedrock": "Amazon Bedrock",
    "cohere": "Cohere",
    "deepseek": "DeepSeek",
    "fireworks": "Fireworks",
    "gemini": "Google Gemini",
    "google": "Google",
    "groq": "Groq",
    "litellm": "LiteLLM",
    "lmstudio": "LM Studio",
    "mistral": "Mistral",
    "moonshot": "Moonshot",
    "ollama": "Ollama",
    "openai": "OpenAI",
    "openai-codex": "OpenAI Codex",
    "openai-compatible": "the OpenAI-compatible provider",
    "openai-responses": "OpenAI",
    "openrouter": "OpenRouter",
    "together": "Together",
    "unknown": NAMELESS,
    "vercel": "Vercel AI Gateway",
    "vertex": "Google Vertex AI",
    "vllm": "vLLM",
    "xai": "xAI",
}
"""By configured name in lower case; a name that is not here is shown as the operator wrote it."""


class ChatError(BaseModel):
    """A failure as it is shown, streamed and stored; the same words in all three places."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ErrorKind = ErrorKind.GENERIC
    message: str
    """What people read, from the copy in this module."""
    provider: str | None = None
    """The provider's configured name; None where the failure has no provider."""
    retryable: bool = False
    status_code: int | None = None
    """The HTTP status; None where the failure rode inside a 200 stream or never met HTTP."""
    detail: str | None = None
    """The provider's own sentence: at most 500 characters, secrets masked."""

    @property
    def title(self) -> str:
        """The heading of the error's card."""
        return COPY[self.kind].title

    @property
    def label(self) -> str:
        """One or two words for a badge or a table."""
        return COPY[self.kind].label


def display_name(provider: str | None) -> str:
    """Return the name that people know *provider* by.

    >>> display_name("Azure_OpenAI"), display_name("my-gateway"), display_name(None)
    ('Azure OpenAI', 'my-gateway', 'the AI provider')
    """
    name = (provider or "").strip()
    return DISPLAY_NAMES.get(name.lower().replace("_", "-").replace(" ", "-"), name) or NAMELESS


def terminal_copy(kind: ErrorKind, provider: str | None = None, situation: Situation | None = None) -> str:
    """Word a failure that ends a turn: the fact and one action.

    >>> terminal_copy(ErrorKind.AUTH, "openai")
    'OpenAI rejected the credentials. Check the API key and what it is permitted to do.'
    """
    if situation is not None:
        return _render(SITUATIONS[situation], provider)
    return _render(f"{COPY[kind].fact} {COPY[kind].action}", provider)


def retry_copy(error: ChatError) -> str:
    """Word *error* for a countdown: the fact alone.

    >>> retry_copy(ChatError(kind=ErrorKind.OVERLOADED, message="", provider="anthropic"))
    'Anthropic is short of capacity.'
    """
    return _render(COPY[error.kind].fact, error.provider)


def with_try_after(error: ChatError, moment: datetime) -> ChatError:
    """Return *error* with copy that names the earliest moment at which the provider will answer again.

    >>> limited = ChatError(kind=ErrorKind.RATE_LIMIT, message="", provider="openai")
    >>> with_try_after(limited, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)).message
    'OpenAI is limiting the rate of requests. Try after 2026-01-02 03:05 UTC.'
    """
    # Rounded up: the minute that is shown must not lie before the moment that was asked for.
    shown = moment.astimezone(UTC)
    if shown.second or shown.microsecond:
        shown = datetime.fromtimestamp((shown.timestamp() // 60 + 1) * 60, UTC)
    message = f"{retry_copy(error)} Try after {shown:%Y-%m-%d %H:%M} UTC."
    return error.model_copy(update={"message": message})


def read_stored(stored: Any) -> ChatError | None:
    """Read a stored error back; what cannot be read becomes `generic`, never an exception.

    Args:
        stored: A ChatError, its JSON as text or bytes, or its decoded JSON; None where no error is stored.

    >>> read_stored('{"kind": "auth", "message": "No."}').kind
    <ErrorKind.AUTH: 'auth'>
    >>> read_stored({"kind": "of another age"}).kind
    <ErrorKind.GENERIC: 'generic'>
    """
    if stored is None or isinstance(stored, ChatError):
        return stored
    try:
        if isinstance(stored, str | bytes | bytearray):
            return ChatError.model_validate_json(stored)
        return ChatError.model_validate(stored)
    except ValidationError:
        return ChatError(message=terminal_copy(ErrorKind.GENERIC))


def _render(template: str, provider: str | None) -> str:
    # Not `str.format`: a provider's configured name may itself hold braces.
    sentence = template.replace("{provider}", display_name(provider))
    # "the AI provider" takes a capital where it opens the sentence; a name such as "vLLM" keeps its own.
    return "T" + sentence[1:] if sentence.startswith("the ") else sentence
