"""People who watch: `python -m tests.benchmarks.followers TURN…` follows all turns with one `AsyncTurnkeeper`."""

import sys

import uvloop
from tests.benchmarks.listening import Heard, answer_parent

from turnkeeper import AsyncTurnkeeper
from turnkeeper.events import TurnPart


async def follow(keeper: AsyncTurnkeeper, turn_id: str, heard: Heard) -> None:
    """Note how late each piece of the answer is."""
    heard.begun += 1
    async for event in keeper.follow(turn_id):
        if isinstance(event, TurnPart):
            heard.events += 1
            heard.note(event.text)
    heard.ended += 1


async def main() -> None:
    """Follow until the parent goes away."""
    heard = Heard()
    async with AsyncTurnkeeper() as keeper:
        await answer_parent(heard, [follow(keeper, turn_id, heard) for turn_id in sys.argv[1:]])


if __name__ == "__main__":
    uvloop.run(main())
