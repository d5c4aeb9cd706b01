"""HTTP/2 through a real worker process: streams that are reset and connections that end, on every API."""

from collections.abc import Iterator, Mapping

import pytest

from turnkeeper import ErrorKind
from turnkeeper_ops.simulator.scripts import CutStep, GoAwayStep, ResetStep, Step
from turnkeeper_worker.failures.http2 import BROKEN_PROTOCOL, Http2Code

from .conftest import LONERS, Record, Site
from .fault_rows import MID, SLOWLY, Api, Row, passes, row, seen, stands, stays, unseen

UNKNOWN_CODES = (0xFF, 0xFFFF_FFFF)


def resets() -> Iterator[Row]:
    """RST_STREAM with every code; one that speaks of a fault in the protocol would come again."""
    for code in (*Http2Code, *UNKNOWN_CODES):
        broken = code in BROKEN_PROTOCOL
        ending = stays(seen(ErrorKind.GENERIC)) if broken else passes(seen(ErrorKind.TIMEOUT))
        yield row(f"reset with {code}", {"type": "reset_stream", "code": code, "at": MID, **SLOWLY}, ending=ending)
    for at in ("before_headers", "before_first_event"):
        step = {"type": "reset_stream", "code": Http2Code.REFUSED_STREAM, "at": at}
        yield row(f"refused {at}", step, ending=passes(unseen(ErrorKind.TIMEOUT)))


def farewells() -> Iterator[Row]:
    """GOAWAY, whatever the code."""
    for code in (
        Http2Code.NO_ERROR,
        Http2Code.PROTOCOL_ERROR,
        Http2Code.INTERNAL_ERROR,
        Http2Code.ENHANCE_YOUR_CALM,
    ):
        step = {"type": "go_away", "code": code, "at": MID, **SLOWLY}
        yield row(f"told to go away with {code}", step, ending=passes(seen(ErrorKind.TIMEOUT)))
    step = {"type": "go_away", "at": "before_headers"}
    yield row("told to go away before the answer", step, ending=passes(unseen(ErrorKind.TIMEOUT)))


def breaks() -> Iterator[Row]:
    """A connection that ends without a word."""
    for fault in ("cut", "reset"):
        step = {"type": fault, "at": MID, **SLOWLY}
        yield row(f"connection {fault}", step, ending=passes(seen(ErrorKind.TIMEOUT)))


def neighbours() -> Iterator[Row]:
    """Answers that share their connection with all the resets."""
    yield row("a long answer beside them", {"type": "answer", "chunk_delay_ms": 400}, ending=stands())
    yield row("a refusal beside them", {"type": "status", "status": 500}, ending=passes(unseen(ErrorKind.GENERIC)))


TABLE = [*resets(), *farewells(), *breaks(), *neighbours()]
Records = Mapping[tuple[str, Api], Record]
every_cell = pytest.mark.parametrize(
    ("row", "api"),
    [pytest.param(row, api, id=f"{row.name}-{api.name.lower()}") for row in TABLE for api in Api],
)


@pytest.fixture(scope="module")
def records(fault_site: Site) -> Records:
    """Run the turns of all cells side by side; those that lose their connection have it for themselves."""
    loners = [row.name for row in TABLE if isinstance(step_of(row), GoAwayStep | CutStep | ResetStep)]
    assert len(loners) <= LONERS
    words = {row.name: fault_site.script(*row.steps) for row in TABLE}

    def turn(row: Row, api: Api) -> tuple[str, str]:
        group = f"loner_{loners.index(row.name)}" if row.name in loners else "http2"
        return f"Once {words[row.name]}", f"{group}_{api.value}"

    cells = [(row, api) for row in TABLE for api in Api]
    ended = fault_site.run_all([turn(row, api) for row, api in cells])
    return {(row.name, api): record for (row, api), record in zip(cells, ended, strict=True)}


@every_cell
def test_every_fault_of_http2_has_its_ending(records: Records, row: Row, api: Api) -> None:
    record = records[row.name, api]

    ending = row.on(api)
    assert record.tries == ending.tries
    assert record.view.state is ending.state
    assert len(record.calls) == len(ending.tries)


@pytest.mark.parametrize("api", Api, ids=lambda api: api.name.lower())
@pytest.mark.parametrize("code", [*Http2Code, UNKNOWN_CODES[0]])
def test_a_reset_is_known_by_its_code_and_its_sender(records: Records, code: int, api: Api) -> None:
    facts = records[f"reset with {code}", api].view.attempts[0].facts

    assert facts is not None
    assert facts["evidence"] == f"HTTP/2 error code {code}, from the peer: True"


@pytest.mark.parametrize("api", Api, ids=lambda api: api.name.lower())
@pytest.mark.parametrize("row", [*farewells()], ids=lambda row: row.name)
def test_a_farewell_is_known_as_one(records: Records, row: Row, api: Api) -> None:
    facts = records[row.name, api].view.attempts[0].facts

    assert facts is not None
    assert facts["evidence"] == "the connection was told to go away"


@every_cell
def test_its_text_is_there_once_and_what_failed_is_taken_back(records: Records, row: Row, api: Api) -> None:
    record = records[row.name, api]

    ending = row.on(api)
    text = ending.text(record.answer)
    taken = record.taken_back()
    assert (record.view.text, record.read().text) == (text, text)
    assert [bool(before) for before, _ in taken] == [one.seen for one in ending.failed]
    assert all(record.answer.startswith(before) for before, _ in taken)
    assert not any(behind for _, behind in taken)


def step_of(row: Row) -> Step:
    (step,) = row.script
    return step
