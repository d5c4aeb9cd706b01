"""What the Anthropic Messages API is told of a history: who said what, as the blocks that it knows.  Pure.

Results follow their calls, searches come with what they found, thoughts under their seal; the rest is left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import assert_never

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)
from turnkeeper_worker.providers.history import (
    FAILED_TOOL,
    Block,
    Wire,
    arguments_object,
    text_block,
    tool_name,
)
from turnkeeper_worker.replay import plain_name

MAX_NAME_CHARS = 128
UNSHOWN_IMAGE = "(An image that cannot be shown here.)"

THOUGHTS = frozenset({"thinking", "redacted_thinking"})
"""Types of the blocks that hold thoughts."""
_MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


def spoken(history: Iterable[Message], *, may_search: bool, is_paused: bool) -> Iterator[Wire]:
    """Write down what each side said until the other spoke, and leave out that of which nothing can be sent.

    Args:
        history: The messages.
        may_search: Whether the API takes searches back, which it does only beside the tool for them.
        is_paused: Whether the model goes on with what it said last, which then stays as it broke off.
    """
    sides = [(role, _reunited(said)) for role, said in groupby(history, key=attrgetter("role"))]
    for number, (role, parts) in enumerate(sides, start=1):
        blocks = [block for part in parts for block in _blocks(part, may_search=may_search)]
        if is_paused and number == len(sides):
            blocks += _begun_search(parts[-1:]) if may_search else ()
        else:
            # A message may not end in a thought, and one that led to nothing is of no use.
            while blocks and blocks[-1]["type"] in THOUGHTS:
                blocks.pop()
        if blocks:
            yield {"role": role, "content": blocks}


def _reunited(said: Iterable[Message]) -> list[Part]:
    """Return the parts of *said*, each search with its result, which a pause may have put into another message."""
    parts = [part for message in said for part in message.parts]
    late = {part.id: part.sources for part in parts if isinstance(part, WebSearch) and part.action is None}
    return [
        part.model_copy(update={"sources": late[part.id]})
        if isinstance(part, WebSearch) and part.id in late
        else part
        for part in parts
    ]


def _blocks(part: Part, *, may_search: bool) -> Iterator[Block]:
    match part:
        case Text(text=text) | Refusal(text=text):
            if text.strip():
                yield text_block(text)
        case Image(url=url):
            yield _image(url)
        case Reasoning():
            yield from _thought(part)
        case ToolCall():
            yield _tool_use(part)
        case ToolResult():
            yield _tool_result(part)
        case WebSearch():
            yield from _search(part) if may_search else ()
        case other:
            assert_never(other)


def _thought(thought: Reasoning) -> Iterator[Block]:
    """Give a thought back under its seal; without one it is not Anthropic's, or damaged, and would be refused."""
    if thought.signature:
        yield {"type": "thinking", "thinking": thought.text, "signature": thought.signature}
    elif thought.redacted:
        yield {"type": "redacted_thinking", "data": thought.redacted}


def _image(url: str) -> Block:
    head, _, data = url.partition(",")
    media_type, *parameters = head.removeprefix("data:").split(";")
    if url.startswith("https://"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    if head.startswith("data:") and "base64" in parameters and media_type in _MEDIA_TYPES and data:
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
    return text_block(UNSHOWN_IMAGE)


def _tool_use(call: ToolCall) -> Block:
    return {
        "type": "tool_use",
        "id": plain_name(call.call_id, MAX_NAME_CHARS),
        "name": tool_name(call.name, MAX_NAME_CHARS),
        "input": arguments_object(call.arguments),
    }


def _tool_result(result: ToolResult) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": plain_name(result.call_id, MAX_NAME_CHARS)}
    if result.output.strip():
        block["content"] = result.output
    elif result.is_error:
        block["content"] = FAILED_TOOL
    return block | ({"is_error": True} if result.is_error else {})


def _search(search: WebSearch) -> Iterator[Block]:
    """Give a search back together with what it found, or not at all."""
    sources = search.sources or ()
    if not (search.action and search.id and sources and all(source.encrypted for source in sources)):
        return
    yield _asked(search.id, search.action)
    found = [
        {
            "type": "web_search_result",
            "url": source.url,
            "title": source.title or source.url,
            "encrypted_content": source.encrypted,
        }
        | ({"page_age": source.age} if source.age else {})
        for source in sources
    ]
    yield {"type": "web_search_tool_result", "tool_use_id": search.id, "content": found}


def _begun_search(last: Iterable[Part]) -> Iterator[Block]:
    """Give a search back that the pause came before the end of; the API ends it first of all."""
    for part in last:
        if isinstance(part, WebSearch) and part.id and part.action and part.sources is None:
            yield _asked(part.id, part.action)


def _asked(search_id: str, action: Mapping[str, object]) -> Block:
    asked = {name: value for name, value in action.items() if name != "type"}
    return {"type": "server_tool_use", "id": search_id, "name": "web_search", "input": asked}
