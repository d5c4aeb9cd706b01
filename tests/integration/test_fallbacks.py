"""Falling back against real PostgreSQL: what changes on the turn, what stays, and what is repeated later."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from turnkeeper import turns
from turnkeeper.erasing import erase_chat
from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.requests import Fallback, TurnRequest
from turnkeeper.states import AttemptOutcome
from turnkeeper.tables import left_responses
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.checkpoint import Checkpoint
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.planner import Planner
from turnkeeper_worker.store import Choice, Claimed, Ended
from turnkeeper_worker.tools import Toolbox
from turnkeeper_worker.upkeep import Abandoned

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

ERROR = ChatError(kind=ErrorKind.AUTH, message="OpenAI rejected the credentials.", provider="openai")
FAILED = Ended(outcome=AttemptOutcome.FELL_BACK, error=ERROR, usage={"input_tokens": 3})
CLAUDE, LOCAL = Fallback(provider="anthropic", model="claude"), Fallback(provider="local")
OPENAI = ProviderConfig(base_url="https://api.openai.com/v1", model="m", fallbacks=(LOCAL,))
PLANNER = Planner(
    configs={
        "openai": OPENAI,
        "openai-eu": ProviderConfig(base_url="https://eu.api.openai.com/v1", model="m"),
        "anthropic": ProviderConfig(api="anthropic-messages", base_url="https://api.anthropic.com/v1"),
        "local": ProviderConfig(api="openai-chat", base_url="http://127.0.0.1:1/v1", model="l"),
    },
    keys={},
    toolbox=Toolbox(),
)
ALL = (CLAUDE, LOCAL)


def fall_back(stage: "Stage", turn: Claimed, to: Fallback, *, goes_on: bool = False) -> Claimed:
    """Fall back as a delivery does, and begin the next attempt."""
    ended = replace(FAILED, usage=None) if goes_on else FAILED
    following = stage.do(store.fall_back, turn, ended, PLANNER.choice(turn, to), goes_on=goes_on)
    return stage.do(PLANNER.begin, following).turn


class TestTheTurn:
    def test_another_model_goes_on_under_the_same_lease_on_a_budget_of_its_own(self, stage: "Stage") -> None:
        turn_id = stage.enqueue(model="gpt", fallbacks=ALL).id
        stage.set(turn_id, spent=11, healed=True)
        turn = stage.claim(turn_id)
        stage.keep(turn)

        instead = fall_back(stage, turn, CLAUDE)

        row = stage.row(turn_id)
        assert (row["state"], row["epoch"], row["step"], row["attempt"]) == ("running", turn.epoch, 1, 2)
        assert (row["provider"], row["model"], row["spent"], row["healed"]) == ("anthropic", "claude", 0, False)
        assert (row["fallbacks"], row["checkpoint"]) == ([{"provider": "local"}], None)
        assert row["usage"] == {"input_tokens": 3}
        assert (instead.provider, instead.model, instead.spent, instead.checkpoint) == (
            "anthropic",
            "claude",
            0,
            None,
        )
        first, second = stage.attempts(turn_id)
        assert (first["outcome"], first["error"]["kind"], first["usage"]) == (
            "fell_back",
            "auth",
            {"input_tokens": 3},
        )
        assert (second["outcome"], second["provider"], second["model"]) == ("running", "anthropic", "claude")

    def test_it_remembers_what_it_asked_for_at_first(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(options={"seed": 1}, fallbacks=ALL).id)

        last = fall_back(stage, fall_back(stage, turn, CLAUDE), LOCAL)

        first_choice = stage.row(turn.id)["first_choice"]
        assert (first_choice["provider"], first_choice["model"]) == ("openai", None)
        assert (first_choice["options"], len(first_choice["fallbacks"])) == ({"seed": 1}, 2)
        assert last.asked.provider == "openai"
        stage.fail(last)
        assert stage.row(turn.id)["fallbacks"] == []

    @pytest.mark.parametrize("repeat", ["retry", "edit"])
    def test_whoever_repeats_it_asks_for_the_same_again(self, stage: "Stage", repeat: str) -> None:
        turn = stage.claim(stage.enqueue(model="gpt", options={"seed": 1}, background=True, fallbacks=ALL).id)
        stage.fail(fall_back(stage, turn, CLAUDE))

        if repeat == "retry":
            again = stage.do(turns.retry, turn.id).id
        else:
            again = stage.do(turns.enqueue, TurnRequest.parse({"text": "Anew", "edits": turn.id})).id

        row = stage.row(again)
        assert (row["provider"], row["model"]) == ("openai", "gpt")
        assert (row["options"], row["background"]) == ({"seed": 1}, True)
        assert [one["provider"] for one in row["fallbacks"]] == ["anthropic", "local"]
        assert row["first_choice"] is None

    def test_the_next_turn_of_the_chat_begins_with_the_chat_s_own_model(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(model="gpt", fallbacks=ALL).id)
        stage.complete(fall_back(stage, turn, CLAUDE))

        row = stage.row(stage.enqueue("And?", chat_id=turn.chat_id, provider=None).id)

        assert (row["provider"], row["model"]) == ("openai", "gpt")
        assert [one["provider"] for one in row["fallbacks"]] == ["anthropic", "local"]

    def test_a_successor_goes_on_with_the_model_that_was_fallen_back_on(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(fallbacks=ALL).id)
        instead = fall_back(stage, turn, CLAUDE)
        stage.silence(instead.worker_id)
        stage.do(upkeep.rescue, timedelta(seconds=15))

        successor = stage.claim(turn.id)

        assert (successor.provider, successor.model) == ("anthropic", "claude")
        assert PLANNER.fallbacks(successor) == (LOCAL,)
        assert successor.asked.provider == "openai"


class TestWhoMayAnswer:
    @pytest.mark.parametrize(
        ("of_chat", "of_turn", "expected"),
        [
            pytest.param(None, None, (LOCAL,), id="as the provider is configured"),
            pytest.param((CLAUDE,), None, (CLAUDE,), id="as the chat says"),
            pytest.param((CLAUDE,), ALL, ALL, id="as the turn says"),
            pytest.param((CLAUDE,), (), (), id="nobody, says the turn"),
            pytest.param((), None, (), id="nobody, says the chat"),
        ],
    )
    def test_the_turn_decides_then_its_chat_then_its_provider(
        self,
        stage: "Stage",
        of_chat: tuple[Fallback, ...] | None,
        of_turn: tuple[Fallback, ...] | None,
        expected: tuple[Fallback, ...],
    ) -> None:
        first = stage.enqueue(fallbacks=of_chat)
        stage.complete(stage.claim(first.id))

        turn = stage.claim(stage.enqueue("And?", chat_id=first.chat_id, fallbacks=of_turn).id)

        assert PLANNER.fallbacks(turn) == expected


class TestWhatIsAsked:
    def choice(self, stage: "Stage", to: Fallback, **fields: Any) -> Choice:
        return PLANNER.choice(stage.claim(stage.enqueue(**fields).id), to)

    @pytest.mark.parametrize(
        ("to", "options"),
        [
            pytest.param(Fallback(provider="openai-eu"), {"seed": 1}, id="the same API"),
            pytest.param(CLAUDE, {}, id="another API"),
            pytest.param(Fallback(provider="nobody"), {}, id="a provider that nobody knows"),
            pytest.param(Fallback(provider="local", options={"n": 2}), {"n": 2}, id="options of its own"),
        ],
    )
    def test_options_go_along_where_they_mean_the_same(
        self, stage: "Stage", to: Fallback, options: dict[str, Any]
    ) -> None:
        assert self.choice(stage, to, options={"seed": 1}).options == options

    def test_options_come_back_with_the_api_that_they_were_for(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(options={"seed": 1}, background=True, fallbacks=ALL).id)
        elsewhere = fall_back(stage, turn, CLAUDE)
        assert (elsewhere.options, elsewhere.background) == ({}, None)

        back = PLANNER.choice(elsewhere, Fallback(provider="openai-eu"))

        assert (back.options, back.background) == ({"seed": 1}, True)

    def test_the_background_is_left_out_where_there_is_none(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(background=True, fallbacks=ALL).id)
        following = stage.do(store.fall_back, turn, FAILED, PLANNER.choice(turn, LOCAL))

        attempt = stage.do(PLANNER.begin, following)

        assert (attempt.obstacle, attempt.call.background) == (None, False)


class TestLeftBehind:
    def left(self, stage: "Stage") -> tuple[Claimed, Abandoned]:
        """Return a turn that fell back while its background response went on."""
        turn = stage.claim(stage.enqueue(fallbacks=ALL, background=True).id)
        stage.keep(turn, pieces=(("text", "a secret"),))
        instead = fall_back(stage, turn, LOCAL, goes_on=True)
        (abandoned,) = stage.do(upkeep.find_abandoned)
        return instead, abandoned

    def test_a_response_that_goes_on_is_found_at_once_and_without_its_words(self, stage: "Stage") -> None:
        turn, abandoned = self.left(stage)

        assert (abandoned.turn_id, abandoned.checkpoint.response_id) == (turn.id, "resp_9")
        assert abandoned.checkpoint.pieces == ()

    def test_one_that_is_over_is_not(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(fallbacks=ALL, background=True).id)
        stage.keep(turn)

        fall_back(stage, turn, LOCAL)

        assert stage.do(upkeep.find_abandoned) == []

    def test_its_cost_is_added_when_the_turn_has_ended(self, stage: "Stage") -> None:
        turn, abandoned = self.left(stage)

        stage.do(upkeep.close_abandoned, abandoned, {"input_tokens": 50})
        assert stage.do(upkeep.find_abandoned) == []
        stage.complete(turn)
        (again,) = stage.do(upkeep.find_abandoned)
        stage.do(upkeep.close_abandoned, again, {"input_tokens": 50})

        assert stage.row(turn.id)["usage"] == {"input_tokens": 53}
        assert [one["usage"] for one in stage.attempts(turn.id)] == [{"input_tokens": 50}, {"input_tokens": 3}]
        assert (stage.do(upkeep.find_abandoned), stage.count(left_responses)) == ([], 0)

    def test_it_is_called_off_when_its_chat_is_erased(self, stage: "Stage") -> None:
        turn, abandoned = self.left(stage)

        stage.do(erase_chat, turn.chat_id)

        assert stage.do(upkeep.find_abandoned) == [abandoned]
        stage.do(upkeep.close_abandoned, abandoned, {"input_tokens": 50})
        assert stage.count(left_responses) == 0

    def test_it_does_not_stand_in_the_way_of_the_next_one(self, stage: "Stage") -> None:
        turn, abandoned = self.left(stage)
        credential = Credential(provider="local", base_url="http://127.0.0.1:1/v1", key="", model="l")
        other = Checkpoint(response_id="resp_10", credential=credential, began_at=datetime.now(UTC), cursor=1)

        stage.do(store.keep, turn, other)

        assert stage.do(upkeep.find_abandoned) == [abandoned]
        assert stage.row(turn.id)["checkpoint"]["response_id"] == "resp_10"
