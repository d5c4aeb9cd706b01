"""What the model says.  Deterministic, and made so that a lost history shows."""

import json
from dataclasses import replace

from turnkeeper_ops.simulator.scripts import Answering, FunctionCall, IncompleteStep
from turnkeeper_ops.simulator.wire import Call, Prompt, Reply

QUOTE_CHARS = 80
"""Longer quotations are cut, so that 10 MB of question do not become 10 MB of answer."""
CHARS_PER_TOKEN = 4


def compose(step: Answering, prompt: Prompt) -> Reply:
    """Say what *step* says, or else the default answer."""
    text = step.text if step.text is not None else "" if step.calls else default_answer(prompt)
    reply = Reply(
        chunks=split(text, step.chunk_chars),
        reasoning=step.reasoning,
        redacted=step.redacted,
        search=step.search,
        calls=tuple(_call(call, step.chunk_chars) for call in step.calls),
        novel=step.novel,
    )
    return _stop_early(reply, step) if isinstance(step, IncompleteStep) else reply


def default_answer(prompt: Prompt) -> str:
    """Tell how many user messages were read, and quote the first and the last.

    >>> default_answer(Prompt(user_texts=("Hello", "And now?"), tool_outputs=(), input_tokens=4,
    ...                       cached_tokens=0, chained=False))
    'I have read 2 user messages. The first says: “Hello”. The last says: “And now?”.'
    """
    outputs = (f"A tool returned: “{quote(output)}”." for output in prompt.tool_outputs)
    return " ".join([_what_was_read(prompt.user_texts), *outputs])


def _what_was_read(texts: tuple[str, ...]) -> str:
    if not texts:
        return "I have read no user message."
    if len(texts) == 1:
        return f"I have read 1 user message. It says: “{quote(texts[0])}”."
    return (
        f"I have read {len(texts)} user messages. "
        f"The first says: “{quote(texts[0])}”. The last says: “{quote(texts[-1])}”."
    )


def quote(text: str) -> str:
    """Shorten *text* to what may stand in a sentence."""
    line = " ".join(text[: 4 * QUOTE_CHARS].split())
    return line if len(line) <= QUOTE_CHARS else f"{line[: QUOTE_CHARS - 1]}…"


def split(text: str, chars: int) -> tuple[str, ...]:
    """Cut *text* into pieces of *chars* characters.

    >>> split("abcde", 2)
    ('ab', 'cd', 'e')
    """
    return tuple(text[start : start + chars] for start in range(0, len(text), chars))


def count_tokens(chars: int) -> int:
    """Return about how many tokens *chars* characters of text are.

    >>> [count_tokens(chars) for chars in (0, 1, 4, 9)]
    [0, 1, 1, 3]
    """
    return -(-chars // CHARS_PER_TOKEN)


def _call(call: FunctionCall, chars: int) -> Call:
    arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
    return Call(name=call.name, pieces=split(arguments, chars), call_id=call.call_id)


def begun(reply: Reply, chunks: int) -> Reply:
    """Return what of *reply* has been said after so many chunks, its reasoning counted.

    >>> begun(Reply(chunks=("a", "b"), reasoning="Hm"), 2).chunks
    ('a',)
    """
    thought = int(bool(reply.reasoning) and not reply.redacted)
    reasoning = reply.reasoning if chunks >= thought else None
    return replace(_first(reply, chunks - thought), reasoning=reasoning)


def _stop_early(reply: Reply, step: IncompleteStep) -> Reply:
    """Keep the first chunks alone, or nothing behind a search that has not come to its end."""
    kept = _first(reply, 0 if step.in_search else step.at)
    return replace(kept, found=not step.in_search, stopped=step.reason)


def _first(reply: Reply, chunks: int) -> Reply:
    """Keep the first chunks of text and calls; a call may be cut in the middle of its arguments."""
    left = chunks - len(reply.chunks)
    calls = []
    for call in reply.calls:
        if left > 0:
            kept = call.pieces[:left]
            calls.append(replace(call, pieces=kept, whole=kept == call.pieces))
        left -= len(call.pieces)
    return replace(reply, chunks=reply.chunks[: max(0, chunks)], calls=tuple(calls))
