"""The examples in the docstrings hold."""

import doctest
from types import ModuleType

import pytest

from turnkeeper_ops.simulator import (
    actions,
    answers,
    openai_errors,
    responses_items,
    responses_parameters,
    turns,
)


@pytest.mark.parametrize(
    "module",
    [actions, answers, openai_errors, responses_items, responses_parameters, turns],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_the_examples_hold(module: ModuleType) -> None:
    outcome = doctest.testmod(module)

    assert outcome.attempted > 0
    assert outcome.failed == 0
