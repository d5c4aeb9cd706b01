"""All wire formats through a real worker, and chats that change provider; their faults are in `test_faults`."""

import pytest

from turnkeeper import Transcript, TurnState
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES

from .conftest import APIS, Site


@pytest.mark.parametrize("provider", APIS, ids=APIS.get)
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
