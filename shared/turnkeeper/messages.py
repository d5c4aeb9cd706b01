"""The normal form of what is said in a chat: messages of parts, whatever provider they came from.

Each part takes the fields that it knows and no other, so that a producer hears of a mistake. What is read back,
from the database or from an event, may have been written by a later release: what that one added is left out.
"""

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

Role = Literal["user", "assistant"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Citation(BaseModel):
    """A page that words rest on, as their provider says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    title: str | None = None
    quote: str | None = None
    """What the page says there."""
    start: int | None = None
    """The first of the words that rest on the page, as the index of a character in the part's text."""
    end: int | None = None
    """The index of the first character after them; given together with `start`, or neither."""


class Text(_Part):
    """Words, of either side."""

    type: Literal["text"] = "text"
    text: str
    # Not written where there are none: the same words keep the digest that they always had.
    citations: tuple[Citation, ...] = Field(default=(), exclude_if=lambda cited: not cited)


class Image(_Part):
    """A picture that the user shows."""

    type: Literal["image"] = "image"
    url: str
    """An `https:` or a `data:` URL."""


class Reasoning(_Part):
    """What the model thought before it spoke; meaningful only to the provider that wrote it."""

    type: Literal["reasoning"] = "reasoning"
    text: str = ""
    """The summary, where the provider shows one."""
    id: str | None = None
    encrypted: str | None = None
    """All of it, as OpenAI Responses seals it."""
    signature: str | None = None
    """Anthropic's seal on `text`: both go back unchanged, or neither."""
    redacted: str | None = None
    """All of it, where Anthropic shows nothing."""
    told_in: Literal["reasoning", "reasoning_content"] | None = None
    """The field of Chat Completions that it came in, and goes back in."""


class ToolCall(_Part):
    """The model asks for a tool to be run."""

    type: Literal["tool_call"] = "tool_call"
    call_id: str
    name: str
    arguments: str
    """JSON, exactly as the model wrote it."""


class ToolResult(_Part):
    """What a tool answered."""

    type: Literal["tool_result"] = "tool_result"
    call_id: str
    output: str
    is_error: bool = False


class Source(BaseModel):
    """A page that a web search found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    title: str | None = None
    age: str | None = None
    """When the page was last changed, in the provider's words."""
    encrypted: str | None = None
    """What the page says, for the provider that found it."""


class WebSearch(_Part):
    """A search that the provider ran itself."""

    type: Literal["web_search"] = "web_search"
    id: str | None = None
    action: dict[str, object] | None = None
    """What was looked for, such as `{"type": "search", "query": "rivers"}`."""
    sources: tuple[Source, ...] | None = None
    """What was found; None where the provider does not tell."""


class Refusal(_Part):
    """The model's own words for not answering."""

    type: Literal["refusal"] = "refusal"
    text: str


Part: TypeAlias = Annotated[
    Text | Image | Reasoning | ToolCall | ToolResult | WebSearch | Refusal, Field(discriminator="type")
]
_strict_parts: TypeAdapter[tuple[Part, ...]] = TypeAdapter(tuple[Part, ...])
_TYPES = frozenset(one.model_fields["type"].default for one in get_args(get_args(Part)[0]))


def _read_back(parts: object) -> object:
    """Read parts without what a later release has added to them, be it a field or a type of part."""
    if not isinstance(parts, list | tuple):
        return parts
    known = [one for one in parts if not _is_of_later_type(one)]
    return _strict_parts.validate_python(known, extra="ignore")


def _is_of_later_type(part: object) -> bool:
    return isinstance(part, dict) and isinstance(kind := part.get("type"), str) and kind not in _TYPES


_StoredParts: TypeAlias = Annotated[tuple[Part, ...], BeforeValidator(_read_back)]

Parts: TypeAdapter[tuple[Part, ...]] = TypeAdapter(_StoredParts)
"""Writes parts down, and reads them back."""


class Message(BaseModel):
    """One side's contribution."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role
    parts: _StoredParts

    @property
    def text(self) -> str:
        """The words of the message, without reasoning or tools.

        >>> Message(role="user", parts=(Text(text="Hel"), Text(text="lo"))).text
        'Hello'
        """
        return "".join(part.text for part in self.parts if isinstance(part, Text | Refusal))
