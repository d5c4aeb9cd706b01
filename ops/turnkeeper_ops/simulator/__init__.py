"""An honest fake of a model provider, in a process of its own.

It speaks the provider's wire format, checks its input as the provider does, stores responses so that
chains really work, and answers so that a lost history shows.  The word `sim:NAME` in the last user
message names a script: what happens to the requests of that turn, one step each.

    python -m turnkeeper_ops.simulator --port 0 --api-key sk-simulator

How it is built, from the top:

    server          the process: listens, announces, ends
    routes          which request goes where
    responses_api   the endpoints         control      /simulator: scripts, log, health
    play            does actions on a connection, and logs
    actions         a step becomes actions (pure)
    responses_*     the wire format: parameters, items, events
    turns           which step applies    answers      what the model says
    vault           stored responses      journal      the log
    connection      HTTP/1.1, cut and reset included
    scripts, wire   the words: steps; prompts, replies, frames

A second wire format is one more `Wire` and its endpoints; scripts, faults, vault and journal stay.
"""

from turnkeeper_ops.simulator.server import CannotListen, run, serve
from turnkeeper_ops.simulator.state import Settings

__all__ = ["CannotListen", "Settings", "run", "serve"]
