"""What the tests of all streams share, whatever their API: a listener that remembers, and how a stream ends."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from turnkeeper.events import PartKind
from turnkeeper_worker.providers.interface import Answer, Failed, Result, Running
from turnkeeper_worker.providers.stream import EventStream

DONE = object()
"""Stands for the frame `[DONE]`, which is not JSON."""


@dataclass
class Heard:
    """A listener that remembers."""

    begun: list[str] = field(default_factory=list)
    pieces: list[tuple[PartKind, str]] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)
    places: list[Running] = field(default_factory=list)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        pass

    def started(self, response_id: str) -> None:
        self.begun.append(response_id)

    def said(self, kind: PartKind, text: str) -> None:
        self.pieces.append((kind, text))

    def counted(self, usage: dict[str, int]) -> None:
        self.counts.append(usage)

    async def reached(self, running: Running) -> None:
        self.places.append(running)


@dataclass(frozen=True)
class Judge:
    """Tells events to the streams of one API, and returns what they make of them."""

    open: Callable[[], EventStream]

    def told(self, *events: object, stream: EventStream | None = None) -> Result:
        """Return the result of a stream that ends after *events*."""
        stream = stream or self.open()
        for event in events:
            result = stream.done() if event is DONE else stream.take(event)
            if result is not None:
                return result
        return stream.cut()

    def answer(self, *events: object, stream: EventStream | None = None) -> Answer:
        result = self.told(*events, stream=stream)
        assert isinstance(result, Answer), result
        return result

    def failed(self, *events: object, stream: EventStream | None = None) -> Failed:
        result = self.told(*events, stream=stream)
        assert isinstance(result, Failed), result
        return result


@st.composite
def sprinkled(
    draw: st.DrawFn, events: Sequence[object], strange: st.SearchStrategy[Iterable[object]]
) -> list[object]:
    """Draw *events* with strange ones among them, before the first and behind the last too."""
    mixed: list[object] = []
    for event in [*events, None]:
        for some in draw(st.lists(strange, max_size=2)):
            mixed += some
        if event is not None:
            mixed.append(event)
    return mixed
