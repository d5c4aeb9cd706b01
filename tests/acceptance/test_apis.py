"""All wire formats through a real worker: the same faults, the same outcomes, and chats that change provider."""

import pytest

from turnkeeper import AttemptOutcome, ErrorKind, Transcript, TurnState
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES

from .conftest import Site

APIS = [
    pytest.param(SIMULATOR, id="Responses"),
    pytest.param(SIMULATOR_CHAT, id="Chat Completions"),
    pytest.param(SIMULATOR_MESSAGES, id="Anthropic Messages"),
]

RETRIED = {
    "rate-limited": ErrorKind.RATE_LIMIT,
    "overloaded": ErrorKind.OVERLOADED,
    "server-error": ErrorKind.GENERIC,
    "bad-gateway": ErrorKind.TIMEOUT,
    "cut": ErrorKind.TIMEOUT,
    "reset": ErrorKind.TIMEOUT,
    "unfinished": ErrorKind.TIMEOUT,
    "malformed": ErrorKind.TIMEOUT,
}
"""The simulator's faults that pass, and the kind under which they are told."""

TERMINAL = {
    "unauthorized": ErrorKind.AUTH,
    "quota": ErrorKind.USAGE_LIMIT,
    "context-overflow": ErrorKind.CONTEXT_OVERFLOW,
}
"""The simulator's faults that no retry can mend."""


@pytest.mark.parametrize("provider", APIS)
def test_a_turn_is_streamed_and_stored(site: Site, provider: str) -> None:
    turn = site.enqueue("Hello", provider=provider)

    events = site.events(turn)

    view = site.keeper.show(turn.id)
    transcript = Transcript()
    transcript.feed(events)
    assert view.state is TurnState.COMPLETED
    assert "“Hello”" in view.text
    assert transcript.text == view.text
    assert view.usage is not None
    assert view.usage["output_tokens"] > 0


@pytest.mark.parametrize("provider", APIS)
@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_that_passes_is_retried_and_the_text_is_there_once(site: Site, provider: str, fault: str) -> None:
    turn = site.enqueue(f"Once sim:{fault}", provider=provider)

    events = site.events(turn)

    view = site.keeper.show(turn.id)
    transcript = Transcript()
    transcript.feed(events)
    assert [attempt.outcome for attempt in view.attempts] == [AttemptOutcome.RETRIED, AttemptOutcome.COMPLETED]
    assert view.attempts[0].kind == RETRIED[fault]
    assert view.text.count("1 user message") == 1
    assert transcript.text == view.text


@pytest.mark.parametrize("provider", APIS)
@pytest.mark.parametrize("fault", TERMINAL)
def test_a_fault_that_stays_ends_the_turn_at_once(site: Site, provider: str, fault: str) -> None:
    view = site.run(f"Try sim:{fault}", provider=provider)

    assert view.state is TurnState.FAILED
    assert [attempt.outcome for attempt in view.attempts] == [AttemptOutcome.FAILED]
    assert view.error is not None
    assert view.error.kind == TERMINAL[fault]


def test_a_chat_goes_from_provider_to_provider_and_none_forgets_or_refuses_anything(site: Site) -> None:
    chat = site.run("The first message sim:reasoning").chat_id

    views = [
        site.run(f"Message {number}", chat=chat, provider=provider)
        for number, provider in enumerate((SIMULATOR_MESSAGES, SIMULATOR_CHAT, SIMULATOR, SIMULATOR), start=2)
    ]

    assert {view.state for view in views} == {TurnState.COMPLETED}
    assert all(len(view.attempts) == 1 for view in views)
    for number, view in enumerate(views, start=2):
        assert f"{number} user messages" in view.text
        assert "The first message" in view.text
    assert [view.attempts[0].chained for view in views] == [False, False, False, True]
