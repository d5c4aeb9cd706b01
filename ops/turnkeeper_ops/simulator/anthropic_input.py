"""What may be posted to `/v1/messages`: the parameters and the blocks, by type.

The API checks its input with pydantic, and says what pydantic says; so do we.  What must stand beside
what is checked in `anthropic_turns`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError

from turnkeeper_ops.simulator.anthropic_errors import MessagesError
from turnkeeper_ops.simulator.openai_parameters import UNKNOWN_MODEL_PREFIX, parse_object

Object: TypeAlias = dict[str, Any]
ToolId = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]+$")]


class _Input(BaseModel):
    """The habits of every model here: a wrong type or an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Block(_Input):
    cache_control: Object | None = None


class Text(_Block):
    """A piece of text."""

    type: Literal["text"]
    text: str
    citations: list[Object] | None = None


class Image(_Block):
    """An image, by its data or its address."""

    type: Literal["image"]
    source: Object


class Document(_Block):
    """A document, by its data or its address."""

    type: Literal["document"]
    source: Object
    title: str | None = None
    context: str | None = None
    citations: Object | None = None


class ToolUse(_Block):
    """A call of the model."""

    type: Literal["tool_use"]
    id: ToolId
    name: Annotated[str, StringConstraints(min_length=1)]
    input: Object
    caller: Object | None = None


class ServerToolUse(_Block):
    """A call that the provider itself answers."""

    type: Literal["server_tool_use"]
    id: Annotated[str, StringConstraints(pattern=r"^srvtoolu_[a-zA-Z0-9_]+$")]
    name: str
    input: Object
    caller: Object | None = None


class WebSearchResult(_Block):
    """What the provider found."""

    type: Literal["web_search_tool_result"]
    tool_use_id: str
    content: list[Object] | Object
    caller: Object | None = None


class Thinking(_Block):
    """What the model thought; it is taken back unchanged or not at all."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinking(_Block):
    """What the model thought, and does not show."""

    type: Literal["redacted_thinking"]
    data: str


class Novel(BaseModel):
    """What only a newer version of the API knows; it is taken back as it was sent."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["novel_block"]


def _as_blocks(content: object) -> object:
    """Read a bare string as the one text block that it stands for."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


ResultBlock: TypeAlias = Annotated[Text | Image | Document, Field(discriminator="type")]


class ToolResult(_Block):
    """The answer to a call."""

    type: Literal["tool_result"]
    tool_use_id: ToolId
    content: Annotated[list[ResultBlock], BeforeValidator(_as_blocks)] | None = None
    is_error: bool | None = None


Block: TypeAlias = Annotated[
    Text
    | Image
    | Document
    | ToolUse
    | ToolResult
    | ServerToolUse
    | WebSearchResult
    | Thinking
    | RedactedThinking
    | Novel,
    Field(discriminator="type"),
]


class Message(_Input):
    """What one side said."""

    role: Literal["user", "assistant"]
    content: Annotated[list[Block], BeforeValidator(_as_blocks)]


class Parameters(_Input):
    """The body of a request."""

    model: Annotated[str, StringConstraints(min_length=1)]
    max_tokens: PositiveInt
    messages: Annotated[list[Message], Field(min_length=1)]
    """The whole conversation; in a thread, what it keeps is put before what was sent."""
    system: Annotated[list[Text], BeforeValidator(_as_blocks)] | None = None
    stream: bool | None = None
    tools: list[Object] | None = None
    tool_choice: Object | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: int | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: list[str] | None = None
    thinking: Object | None = None
    metadata: Object | None = None
    cache_control: Object | None = None
    diagnostics: Object | None = None
    container: str | Object | None = None
    inference_geo: str | None = None
    output_config: Object | None = None
    service_tier: str | None = None
    speed: str | None = None
    user_profile_id: str | None = None


def decode(body: bytes) -> dict[str, Any]:
    """Decode a request's body.

    Raises:
        MessagesError: It is not a JSON object.
    """
    decoded = parse_object(body)
    if decoded is None:
        raise MessagesError("The request body is not valid JSON: Expecting value: line 1 column 1 (char 0)")
    return decoded


def read_parameters(given: Mapping[str, Any]) -> Parameters:
    """Check the types of everything in a request.

    Raises:
        MessagesError: In the API's own words.
    """
    try:
        parameters = Parameters.model_validate(given)
    except ValidationError as error:
        raise MessagesError(_sentence(error)) from error
    if parameters.model.startswith(UNKNOWN_MODEL_PREFIX):
        raise MessagesError(f"model: {parameters.model}", status=404)
    _check_tools(parameters.tools or [])
    return parameters


def _sentence(error: ValidationError) -> str:
    """Say the first thing that is wrong, and where."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "too_short" and first["loc"] == ("messages",):
        return "messages: at least one message is required"
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _check_tools(tools: list[Object]) -> None:
    for index, tool in enumerate(tools):
        if not isinstance(tool.get("name"), str):
            raise MessagesError(f"tools.{index}.name: Field required")
        if not isinstance(tool.get("type"), str | None):
            raise MessagesError(f"tools.{index}.type: Input should be a valid string")
        # A tool of the provider's has a type, and no schema.
        if tool.get("type") in {None, "custom"} and not isinstance(tool.get("input_schema"), dict):
            raise MessagesError(f"tools.{index}.custom.input_schema: Field required")
    if len({tool["name"] for tool in tools}) < len(tools):
        raise MessagesError("tools: Tool names must be unique.")
