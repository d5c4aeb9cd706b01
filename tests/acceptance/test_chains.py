"""Chains through real workers: keys that change, chains that break again and again, Anthropic's threads."""

import json
from collections.abc import Iterator

import pytest

from turnkeeper import AttemptOutcome, TurnState
from turnkeeper.views import TurnView
from turnkeeper_ops.dev.addresses import SIMULATOR_KEY, SIMULATOR_SECOND_KEY

from .conftest import Site, open_site_with, outcomes

ROTATING = "ROTATING_KEY"


def settings(url: str) -> Iterator[str]:
    yield "lease_ttl_seconds = 3.0"
    yield "beat_seconds = 0.5"
    providers = {
        "sealing": ['api = "openai-responses"', "store = false", f'api_key_env = "{ROTATING}"'],
        "thinking": ['api = "anthropic-messages"', f'api_key_env = "{ROTATING}"'],
        "threads": ['api = "anthropic-messages"', "threads = true", "max_chain_breaks = 1000"],
        "fragile": ["max_chain_breaks = 2", "chain_rest_seconds = 600"],
        "sturdy": ["max_chain_breaks = 2", "chain_rest_seconds = 600"],
    }
    for name, lines in providers.items():
        yield f"[providers.{name}]"
        yield f'base_url = "{url}/v1"'
        yield 'model = "sim-1"'
        if ROTATING not in "".join(lines):
            yield 'api_key_env = "TURNKEEPER_SIMULATOR_KEY"'
        yield from lines


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack whose workers take one of their keys from a variable that changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROTATING, SIMULATOR_KEY)
        yield from open_site_with(tmp_path_factory.mktemp("keyring"), settings, concurrency=20)


@pytest.mark.parametrize(("provider", "seal"), [("sealing", "encrypted_content"), ("thinking", "signature")])
def test_what_was_sealed_under_another_key_is_left_out_before_it_is_refused(
    keyring: Site, monkeypatch: pytest.MonkeyPatch, provider: str, seal: str
) -> None:
    first = keyring.run("The first message sim:reasoning", provider=provider)
    second = keyring.run("The second message", chat=first.chat_id, provider=provider)
    assert seal in json.dumps(keyring.calls(second.id)[0]["input"])

    monkeypatch.setenv(ROTATING, SIMULATOR_SECOND_KEY)
    keyring.replace_worker()
    third = keyring.run("The third message", chat=first.chat_id, provider=provider)

    assert (third.state, outcomes(third)) == (TurnState.COMPLETED, [AttemptOutcome.COMPLETED])
    assert seal not in json.dumps(keyring.calls(third.id)[0]["input"])
    assert "3 user messages" in third.text
    monkeypatch.setenv(ROTATING, SIMULATOR_KEY)
    keyring.replace_worker()


@pytest.mark.parametrize("provider", ["sealing", "thinking"])
def test_a_seal_that_is_refused_all_the_same_is_healed_without_it(keyring: Site, provider: str) -> None:
    first = keyring.run("The first message sim:reasoning", provider=provider)

    healed = keyring.run("The second message sim:lost-seal", chat=first.chat_id, provider=provider)

    assert (healed.state, outcomes(healed)) == (
        TurnState.COMPLETED,
        [AttemptOutcome.HEALED, AttemptOutcome.COMPLETED],
    )
    _, replayed = keyring.calls(healed.id)
    assert "2 user messages" in healed.text
    assert not {"encrypted_content", "signature"} & set(json.dumps(replayed["input"]).split('"'))


def test_chains_that_break_again_and_again_rest_for_that_key_alone(keyring: Site) -> None:
    def second_turn(provider: str, words: str) -> TurnView:
        first = keyring.run("The first message", provider=provider)
        return keyring.run(words, chat=first.chat_id, provider=provider)

    broken = [second_turn("fragile", "And sim:lost-anchor") for _ in range(2)]
    resting = second_turn("fragile", "And now?")
    elsewhere = second_turn("sturdy", "And now?")

    assert [outcomes(one) for one in broken] == [[AttemptOutcome.HEALED, AttemptOutcome.COMPLETED]] * 2
    assert (resting.state, resting.attempts[0].chained) == (TurnState.COMPLETED, False)
    assert (elsewhere.state, elsewhere.attempts[0].chained) == (TurnState.COMPLETED, True)


def test_a_chain_that_holds_makes_good_for_one_that_broke(keyring: Site) -> None:
    chat = keyring.run("The first message", provider="sturdy").chat_id
    words = ["sim:lost-anchor", "it holds", "sim:lost-anchor", "it holds"]

    views = [keyring.run(f"{number} {word}", chat=chat, provider="sturdy") for number, word in enumerate(words)]

    assert [one.attempts[0].chained for one in views] == [True] * 4


class TestThreads:
    """https://docs.anthropic.com: message threads."""

    def test_a_thread_is_continued_with_nothing_but_what_is_new(self, keyring: Site) -> None:
        first = keyring.run("The first message", provider="threads", instructions="Be brief.")
        second = keyring.run("The second message", chat=first.chat_id, provider="threads")
        third = keyring.run("The third message", chat=first.chat_id, provider="threads")

        (call,) = keyring.calls(third.id)
        assert call["previous_response_id"] == second.attempts[0].response_id
        assert [item["role"] for item in call["input"]] == ["user"]
        assert "3 user messages" in third.text
        assert [one.attempts[0].chained for one in (first, second, third)] == [False, True, True]

    @pytest.mark.parametrize(
        "spelling",
        [
            "thread_not_found",
            "thread_fingerprint_mismatch",
            "thread_already_continued",
            "thread_continue_in_flight",
            "thread_unsupported_request",
        ],
    )
    @pytest.mark.parametrize("in_stream", [False, True])
    def test_a_thread_that_is_lost_is_healed_at_once(self, keyring: Site, spelling: str, in_stream: bool) -> None:
        first = keyring.run("The first message", provider="threads")
        word = keyring.script({"type": "lost_anchor", "spelling": spelling, "in_stream": in_stream})

        healed = keyring.run(f"The second message {word}", chat=first.chat_id, provider="threads")

        assert outcomes(healed) == [AttemptOutcome.HEALED, AttemptOutcome.COMPLETED]
        broken, replayed = keyring.calls(healed.id)
        assert replayed["previous_response_id"] is None
        assert replayed["arrived_monotonic"] - broken["ended_monotonic"] < 0.5
        assert "2 user messages" in healed.text
        assert keyring.run("It holds", chat=first.chat_id, provider="threads").state is TurnState.COMPLETED

    def test_another_choice_of_options_opens_another_thread(self, keyring: Site) -> None:
        first = keyring.run("The first message", provider="threads")

        second = keyring.run(
            "The second message", chat=first.chat_id, provider="threads", options={"temperature": 0.5}
        )

        assert (second.state, second.attempts[0].chained) == (TurnState.COMPLETED, False)
        assert outcomes(second) == [AttemptOutcome.COMPLETED]
