"""What a producer asks for: one turn.  Validated here, whichever way it came in."""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from turnkeeper.exceptions import InvalidRequest
from turnkeeper.messages import Image, Part, Text, ToolResult
from turnkeeper.states import OnBusy

MAX_TEXT_BYTES = 10 * 1024 * 1024
"""The longest input of a turn, in bytes of UTF-8; it is also OpenAI's limit for one text."""

MAX_REASON_CHARS = 500
"""The longest explanation of what is wrong with a request."""

MAX_FALLBACKS = 10
"""The longest list of models to fall back on."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
ToolNames = tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], ...]

_LATER_FIELDS = frozenset({"tools", "background", "edits", "fallbacks"})
"""Fields that earlier versions did not know; a fingerprint leaves them out while they are not given."""


class Fallback(BaseModel):
    """A model to fall back on.  In short it is written `provider`, or `provider/model`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    provider: Name
    model: Name | None = None
    """None takes the provider's configured one."""
    options: dict[str, JsonValue] | None = None
    """Further fields of its own; None takes the turn's where both speak the same API, else none."""

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        provider, _, model = given.partition("/")
        return {"provider": provider, "model": model or None}

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}" if self.model else self.provider


Fallbacks = Annotated[tuple[Fallback, ...], Field(max_length=MAX_FALLBACKS)]


class TurnRequest(BaseModel):
    """One request for an answer in a chat."""

    # Neither JSON nor PostgreSQL knows infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    chat_id: UUID | None = None
    """The chat to continue; None starts a new one."""
    edits: UUID | None = None
    """The turn whose message this one replaces, in its chat; whatever came after that message goes with it."""
    text: str | None = None
    parts: tuple[Text | Image | ToolResult, ...] = ()
    """The input where text alone does not say it; either this or `text`."""
    provider: Name | None = None
    """A configured provider; None takes the chat's, then `TURNKEEPER_DEFAULT_PROVIDER`."""
    model: Name | None = None
    """The provider's name of a model; None takes the chat's, then the provider's configured one."""
    instructions: str | None = None
    """The system prompt of a new chat."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of the provider's request, such as `{"temperature": 0}`."""
    tools: ToolNames | None = None
    """The workers' tools that the model may call; None takes the chat's."""
    fallbacks: Fallbacks | None = None
    """Who answers, in this order, where the model cannot; None takes the chat's, then the provider's setting."""
    background: bool | None = None
    """Whether the provider goes on when a worker dies; None takes the provider's setting."""
    owner: Annotated[str, Field(max_length=200)] = ""
    """Whose turn it is: owners are served in turn, and idempotency keys are unique per owner."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Of the turns of one owner that wait for a worker, the highest runs first."""
    idempotency_key: Name | None = None
    on_busy: OnBusy = OnBusy.QUEUE

    @model_validator(mode="after")
    def _is_storable(self) -> Self:
        for text in _texts(self.model_dump()):
            _check_storable(text)
        return self

    @model_validator(mode="after")
    def _names_each_tool_once(self) -> Self:
        if self.tools is not None and len(set(self.tools)) < len(self.tools):
            raise ValueError("tools names the same tool twice")
        return self

    @model_validator(mode="after")
    def _edits_where_the_turn_is(self) -> Self:
        if self.edits is not None and self.chat_id is not None:
            raise ValueError("edits names a turn, and with it the chat; leave chat_id out")
        if self.edits is not None and self.on_busy is not OnBusy.QUEUE:
            raise ValueError("an edit stops what came after the message, and nothing else; leave on_busy out")
        return self

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.text is None) == (not self.parts):
            raise ValueError("give either text or parts")
        if not any(map(_says_something, self.input)):
            raise ValueError("the text is empty; say something")
        size = sum(_size(part) for part in self.input)
        if size > MAX_TEXT_BYTES:
            raise ValueError(
                f"the input has {size:,} bytes and {MAX_TEXT_BYTES:,} are allowed; "
                "shorten it, or send it in several turns"
            )
        return self

    @property
    def input(self) -> tuple[Part, ...]:
        """The parts of the user's message."""
        return (Text(text=self.text),) if self.text is not None else self.parts

    def digest(self) -> str:
        """Return a fingerprint that equal requests share, whatever their idempotency key."""
        absent = {name for name in _LATER_FIELDS if getattr(self, name) is None}
        content = self.model_dump(mode="json", exclude={"idempotency_key", "on_busy", "priority", *absent})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def or_default_provider(self, provider: str | None) -> Self:
        """Return the request with *provider* where a new chat names none."""
        is_unnamed = self.chat_id is None and self.edits is None and self.provider is None
        return self.model_copy(update={"provider": provider}) if is_unnamed else self

    @classmethod
    def parse(cls, content: object) -> Self:
        """Validate *content*.  Raises InvalidRequest with one line that names the field."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InvalidRequest(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong with which field, without repeating the input."""
    said = "; ".join(_explain_one(tuple(one["loc"]), one["msg"]) for one in error.errors(include_url=False)[:3])
    # A field's name comes from outside: it may be long, and hold what neither a line nor PostgreSQL can.
    return "".join(char if char.isprintable() else "\ufffd" for char in said[:MAX_REASON_CHARS])


def _explain_one(location: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(step) for step in location)
    what = message.removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _check_storable(text: str) -> None:
    if "\0" in text:
        raise ValueError("the text holds a NUL character, which PostgreSQL cannot store; remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair; send valid Unicode") from None


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, item in value.items():
                yield from _texts(key)
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)
        case _:
            return


def _says_something(part: Part) -> bool:
    return not isinstance(part, Text) or bool(part.text.strip())


def _size(part: Part) -> int:
    match part:
        case Text(text=content) | ToolResult(output=content) | Image(url=content):
            return len(content.encode())
        case _:
            return 0
