"""The examples in the docstrings hold."""

import doctest
from types import ModuleType

import pytest

from turnkeeper_ops.simulator import (
    actions,
    answers,
    anthropic_errors,
    anthropic_events,
    anthropic_pauses,
    anthropic_threads,
    chat_chunks,
    chat_messages,
    encoding,
    generations,
    openai_errors,
    openai_parameters,
    responses_items,
    seals,
    turns,
)


@pytest.mark.parametrize(
    "module",
    [
        actions,
        answers,
        anthropic_errors,
        anthropic_events,
        anthropic_pauses,
        anthropic_threads,
        chat_chunks,
        chat_messages,
        encoding,
        generations,
        openai_errors,
        openai_parameters,
        responses_items,
        seals,
        turns,
    ],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_the_examples_hold(module: ModuleType) -> None:
    outcome = doctest.testmod(module)

    assert outcome.attempted > 0
    assert outcome.failed == 0
