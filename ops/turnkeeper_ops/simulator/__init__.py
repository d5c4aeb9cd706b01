"""An honest fake of a model provider, in a process of its own.

It speaks the wire formats of OpenAI Responses, OpenAI Chat Completions and Anthropic Messages, checks its
input as the providers do, stores responses so that chains really work, goes on with background responses
when nobody listens, and answers so that a lost history shows.  The word `sim:NAME` in the last user
message names a script: what happens to the requests of that turn, one step each, in every API alike.

    python -m turnkeeper_ops.simulator --port 0 --api-key sk-simulator

Each API key is an account of its own: what the model said for one, no other can retrieve, continue or send
back under its seal.

How it is built, from the top:

    server          the process: listens, announces, ends
    routes          which request goes where
    *_api           the endpoints         control      /simulator: scripts, log, health
    exchange        one request to the model, in any API
    generations     background responses: what goes on without a client
    play            does actions on a connection, and logs
    actions         a step becomes actions (pure)
    *_wire          one request in one wire format
        responses_* parameters, items, events
        chat_*      parameters, messages, chunks
        anthropic_* input, turns, events, threads, pauses
        openai_*    what the OpenAI APIs check and refuse alike
    novelties       what only a newer version of each API would send
    turns           which step applies    answers      what the model says
    state           the accounts          seals        what is sealed for each
    vault           stored responses      journal      the log      limits   how many requests a key may make
    entrance        which HTTP            connection, http2   the two of them
    channel         what an endpoint answers on, cut and reset included
    encoding        events and bodies, as bytes
    scripts, wire   the words: steps; prompts, replies, frames

Another wire format is one more `Wire` and one more `Exchange`; scripts, faults, vault and journal stay.
Where a step asks for what an API does not have, the docstring of its `*_wire` says what comes instead.
"""

from turnkeeper_ops.simulator.server import CannotListen, run, serve
from turnkeeper_ops.simulator.state import KEY, SECOND_KEY, Settings

__all__ = ["KEY", "SECOND_KEY", "CannotListen", "Settings", "run", "serve"]
