"""The words that are stored: which states are final, and that no state is forgotten."""

import pytest

from turnkeeper.states import (
    FINAL_STATES,
    WAITING_STATES,
    AttemptOutcome,
    OnBusy,
    ToolRunState,
    TurnState,
    UsagePeriod,
)


@pytest.mark.parametrize(
    ("state", "is_final"),
    [
        pytest.param(TurnState.QUEUED, False, id="a queued turn may still run"),
        pytest.param(TurnState.RUNNING, False, id="a running turn may still end"),
        pytest.param(TurnState.RETRYING, False, id="a retrying turn will run again"),
        pytest.param(TurnState.COMPLETED, True, id="a completed turn has ended"),
        pytest.param(TurnState.FAILED, True, id="a failed turn has ended"),
        pytest.param(TurnState.CANCELLED, True, id="a cancelled turn has ended"),
    ],
)
def test_no_arrow_leads_out_of_a_final_state(state: TurnState, is_final: bool) -> None:
    assert state.is_final is is_final


def test_every_state_is_final_or_waiting_or_running() -> None:
    assert {*FINAL_STATES, *WAITING_STATES, TurnState.RUNNING} == set(TurnState)
    assert not FINAL_STATES & WAITING_STATES


@pytest.mark.parametrize(
    ("enum", "stored"),
    [
        pytest.param(TurnState, "queued running retrying completed failed cancelled", id="turns"),
        pytest.param(
            AttemptOutcome,
            "running completed retried healed fell_back failed cancelled handed_back lost",
            id="attempts",
        ),
        pytest.param(ToolRunState, "started finished interrupted", id="tool runs"),
        pytest.param(OnBusy, "queue interrupt reject", id="on_busy"),
        pytest.param(UsagePeriod, "hour day month", id="periods of usage"),
    ],
)
def test_what_is_stored_keeps_its_spelling(
    enum: type[TurnState | AttemptOutcome | ToolRunState | OnBusy | UsagePeriod], stored: str
) -> None:
    assert [str(one) for one in enum] == stored.split()
