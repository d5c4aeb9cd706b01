"""Under which statuses the words of a table may speak."""

import pytest

from turnkeeper_worker.failures import gates
from turnkeeper_worker.failures.gates import Gate

ERRORS = range(400, 600)
SERVER = set(range(500, 600))


@pytest.mark.parametrize(
    ("gate", "is_open_without", "opens"),
    [
        pytest.param(gates.always, True, set(ERRORS), id="always"),
        pytest.param(gates.unless_throttled, True, set(ERRORS) - {429}, id="unless throttled"),
        pytest.param(gates.unless_unauthorized, True, set(ERRORS) - {401}, id="unless unauthorized"),
        pytest.param(gates.unless_elsewhere, True, set(ERRORS) - {404, 429}, id="unless elsewhere"),
        pytest.param(gates.absent, False, {404, 410}, id="absent"),
        pytest.param(gates.account, True, {401, 402, 403} | SERVER, id="account"),
        pytest.param(gates.refused, True, {400, 403, 404, 405, 410, 415, 422}, id="refused"),
        pytest.param(gates.refused_outright, False, {400, 403, 404, 405, 410, 415, 422}, id="refused outright"),
        pytest.param(gates.credentials, True, {401, 403}, id="credentials"),
        pytest.param(gates.busy, True, {408, 409, 422, 424, 425, 429, 498} | SERVER, id="busy"),
        pytest.param(gates.throttled, True, {400, 403, 413, 422, 429} | SERVER, id="throttled"),
        pytest.param(gates.transport, True, {408, 409, 425, 429} | SERVER, id="transport"),
        pytest.param(gates.silent, True, set(), id="silent"),
    ],
)
def test_a_gate_opens_under_these_statuses_and_no_others(
    gate: Gate, is_open_without: bool, opens: set[int]
) -> None:
    assert gate(None) is is_open_without
    assert {status for status in ERRORS if gate(status)} == opens
