"""What an attempt sends: the anchor and the news where nothing speaks against it, else all that was said."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, func, select, update

from turnkeeper import turns
from turnkeeper.messages import Message, Part, Reasoning, Source, Text, ToolCall, ToolResult, WebSearch
from turnkeeper.states import AttemptOutcome
from turnkeeper.tables import chain_health, chats, messages
from turnkeeper.tools import Tool
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.chain import Credential, Health
from turnkeeper_worker.chain_health import broke
from turnkeeper_worker.config import RESPONSE_KEPT_FOR, THREAD_KEPT_FOR, ProviderConfig
from turnkeeper_worker.failures import Signal
from turnkeeper_worker.planner import Attempt, Obstacle, Planner
from turnkeeper_worker.providers import Running, ToolSpec
from turnkeeper_worker.replay import INTERRUPTED
from turnkeeper_worker.store import Claimed, Ended, Origin, Taken
from turnkeeper_worker.tools import Toolbox

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
OPENAI = ProviderConfig(base_url=HERE.base_url, model="m")
CONFIGS = {
    "openai": OPENAI,
    "other": ProviderConfig(base_url="https://other.example/v1", model="m"),
    "anthropic": ProviderConfig(api="anthropic-messages", base_url="https://api.anthropic.com/v1", model="m"),
    "threads": ProviderConfig(
        api="anthropic-messages", base_url="https://api.anthropic.com/v1", model="m", threads=True
    ),
    "background": ProviderConfig(base_url=HERE.base_url, model="m", background=True),
    "modelless": ProviderConfig(base_url=HERE.base_url),
}
LOOK = ToolCall(call_id="a", name="look", arguments="{}")
SEEN = ToolResult(call_id="a", output="seen")
SEALED = (
    Reasoning(id="rs_1", encrypted="gAAAAA"),
    WebSearch(id="ws_1", sources=(Source(url="https://example.org/", encrypted="ZW5j"),)),
)


class Place(BaseModel):
    city: str


TOOLBOX = Toolbox({"look": Tool(name="look", description="Looks.", arguments=Place, run=print)})
PLANNER = Planner(configs=CONFIGS, keys=dict.fromkeys(CONFIGS, "abc"), toolbox=TOOLBOX)


def with_key(key: str) -> Planner:
    return replace(PLANNER, keys=dict.fromkeys(CONFIGS, key))


def with_config(**changes: Any) -> Planner:
    return replace(PLANNER, configs=CONFIGS | {"openai": OPENAI.model_copy(update=changes)})


def plan(stage: "Stage", turn: Claimed, planner: Planner = PLANNER) -> Attempt:
    """Plan what the turn is at; what a heal or a step has numbered is entered as well, as the claim enters it."""
    is_entered = (turn.step, turn.attempt) in {(row["step"], row["number"]) for row in stage.attempts(turn.id)}
    return stage.do(planner.plan_anew if is_entered else planner.begin, turn)


def second_turn(stage: "Stage", *more: Part, words: str = "And?", **fields: Any) -> Claimed:
    """Return the second turn of a chat, whose first one was answered with *more*; nothing has begun yet."""
    first = stage.claim(stage.enqueue().id)
    stage.complete(first, "Hi", *more)
    return stage.claim(stage.enqueue(words, chat_id=first.chat_id, **fields).id)


def heal(stage: "Stage", turn: Claimed) -> Claimed:
    return stage.do(store.heal, turn, Ended(outcome=AttemptOutcome.HEALED))


def sent(attempt: Attempt) -> list[str]:
    """Return the words that the call sends."""
    return [message.text for message in attempt.call.history]


def parts(attempt: Attempt) -> list[Part]:
    return [part for message in attempt.call.history for part in message.parts]


def set_anchor(stage: "Stage", anchor: object) -> None:
    stage.do(Connection.execute, update(chats).values(anchor=anchor))


def age_anchor(stage: "Stage", age: timedelta) -> None:
    anchor = stage.do(Connection.scalar, select(chats.c.anchor))
    assert anchor is not None
    set_anchor(stage, anchor | {"made_at": (datetime.now(UTC) - age).isoformat()})


def rest(stage: "Stage") -> None:
    stage.do(broke, HERE, tolerated=1, rest=timedelta(hours=1))


A_DAY = timedelta(days=1)
WHOLE = ["Hello", "Hi", "And?"]


class TestWhatTheClaimRead:
    def plans(self, stage: "Stage", taken: Taken, planner: Planner = PLANNER) -> tuple[Attempt | None, Attempt]:
        """Return the plan from what the claim read, and from what is read anew."""
        return planner.plan_taken(taken), stage.do(planner.plan_anew, taken.turn)

    @pytest.mark.parametrize("broken", [False, True], ids=["chains hold", "a chain broke lately"])
    @pytest.mark.parametrize("is_chained", [False, True], ids=["a new chat", "a chat with an anchor"])
    def test_is_enough_for_the_same_plan(self, stage: "Stage", is_chained: bool, broken: bool) -> None:
        if broken:
            stage.do(broke, HERE, tolerated=3, rest=timedelta(hours=1))
        chat = stage.complete_first() if is_chained else None
        directory = PLANNER.directory()

        taken = stage.take(stage.enqueue("And?", chat_id=chat).id, providers=directory)

        planned, anew = self.plans(stage, taken)
        assert planned == anew
        assert anew.call.is_chained is is_chained
        assert anew.health.breaks == broken

    def test_is_not_enough_where_an_anchor_does_not_hold(self, stage: "Stage") -> None:
        taken = stage.take(stage.enqueue("And?", chat_id=stage.complete_first()).id)

        planned, anew = self.plans(stage, taken, with_key("other"))

        assert planned is None
        assert sent(anew) == WHOLE

    @pytest.mark.parametrize("anchor", [{}, [], "?", {"seq": "1", "position": None}, {"seq": 1}])
    def test_is_read_whatever_an_anchor_looks_like(self, stage: "Stage", anchor: Any) -> None:
        chat = stage.complete_first()
        set_anchor(stage, anchor)

        taken = stage.take(stage.enqueue("And?", chat_id=chat).id)

        planned, anew = self.plans(stage, taken)
        assert planned in (None, anew)
        assert sent(anew) == WHOLE

    def test_names_the_default_model_of_the_provider(self, stage: "Stage") -> None:
        turn = stage.take(stage.enqueue().id, providers=PLANNER.directory()).turn

        assert [row["model"] for row in stage.attempts(turn.id)] == ["m"]


class TestChains:
    def test_a_chained_call_sends_the_anchor_and_nothing_but_the_news(self, stage: "Stage") -> None:
        turn = second_turn(stage)

        attempt = plan(stage, turn)

        assert attempt.call.previous_response_id == "resp_1"
        assert sent(attempt) == ["And?"]
        assert attempt.credential == HERE
        assert (attempt.health, attempt.obstacle) == (Health(), None)

    def test_the_attempt_begins_with_the_plan(self, stage: "Stage") -> None:
        turn = second_turn(stage)

        attempt = plan(stage, turn)

        (row,) = stage.attempts(turn.id)
        assert (row["step"], row["number"], row["epoch"]) == (1, 1, turn.epoch)
        assert (row["provider"], row["worker_id"]) == ("openai", turn.worker_id)
        assert (row["chained"], row["resumed"], row["outcome"]) == (None, None, "running")
        assert attempt.turn.model == "m"
        assert attempt.call.request_id == f"{turn.id}/1.1"

    def test_the_first_turn_sends_what_there_is(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(instructions="Be kind.", options={"seed": 1}).id)

        attempt = plan(stage, turn)

        assert not attempt.call.is_chained
        assert sent(attempt) == ["Hello"]
        assert (attempt.call.instructions, attempt.call.options) == ("Be kind.", {"seed": 1})

    def test_how_chains_held_is_known_to_whoever_counts_the_next_one(self, stage: "Stage") -> None:
        stage.do(broke, HERE, tolerated=3, rest=timedelta(hours=1))

        attempt = plan(stage, second_turn(stage))

        assert attempt.call.is_chained
        assert attempt.health == Health(breaks=1)

    @pytest.mark.parametrize(
        ("fields", "planner"),
        [
            pytest.param({}, with_config(store=False), id="the provider keeps no responses"),
            pytest.param({}, with_key("other"), id="another key"),
            pytest.param({}, with_config(base_url="https://proxy.example/v1"), id="another address"),
            pytest.param({"model": "n"}, PLANNER, id="another model"),
            pytest.param({"provider": "other"}, PLANNER, id="another provider"),
            pytest.param({"provider": "anthropic"}, PLANNER, id="one that has no anchors"),
            pytest.param({"provider": "threads"}, PLANNER, id="one that has other anchors"),
            pytest.param({"provider": "nobody"}, PLANNER, id="one that nobody knows"),
        ],
    )
    def test_a_call_that_goes_elsewhere_sends_everything(
        self, stage: "Stage", fields: dict[str, Any], planner: Planner
    ) -> None:
        turn = second_turn(stage, **fields)

        attempt = plan(stage, turn, planner)

        assert attempt.call.previous_response_id is None
        assert sent(attempt) == WHOLE

    @pytest.mark.parametrize(
        "happen",
        [
            pytest.param(lambda s: set_anchor(s, None), id="there is no anchor"),
            pytest.param(lambda s: set_anchor(s, {"response_id": "resp_1"}), id="nobody can read the anchor"),
            pytest.param(lambda s: age_anchor(s, RESPONSE_KEPT_FOR + A_DAY), id="the anchor is too old"),
            pytest.param(rest, id="chains broke too often"),
        ],
    )
    def test_a_doubt_about_the_anchor_sends_everything(
        self, stage: "Stage", happen: "Callable[[Stage], None]"
    ) -> None:
        first = stage.claim(stage.enqueue().id)
        stage.complete(first)
        happen(stage)

        attempt = plan(stage, stage.claim(stage.enqueue("And?", chat_id=first.chat_id).id))

        assert attempt.call.previous_response_id is None
        assert sent(attempt) == WHOLE

    def test_an_anchor_is_continued_as_long_as_the_provider_keeps_it(self, stage: "Stage") -> None:
        first = stage.claim(stage.enqueue().id)
        stage.complete(first)
        age_anchor(stage, RESPONSE_KEPT_FOR - A_DAY)

        assert plan(stage, stage.claim(stage.enqueue("And?", chat_id=first.chat_id).id)).call.is_chained

    def test_an_edited_history_is_sent_as_it_is_now(self, stage: "Stage") -> None:
        turn = second_turn(stage)
        edited = update(messages).where(messages.c.position == 1).values(parts=[{"type": "text", "text": "No"}])
        stage.do(Connection.execute, edited)

        attempt = plan(stage, turn)

        assert attempt.call.previous_response_id is None
        assert sent(attempt) == ["Hello", "No", "And?"]

    def test_a_chain_whose_rest_is_over_is_tried_again(self, stage: "Stage") -> None:
        rest(stage)
        turn = second_turn(stage)
        stage.do(Connection.execute, update(chain_health).values(rests_until=func.now() - timedelta(seconds=1)))

        assert plan(stage, turn).call.is_chained

    def test_what_was_cancelled_before_anybody_heard_it_is_no_news(self, stage: "Stage") -> None:
        first = stage.claim(stage.enqueue().id)
        unheard = stage.enqueue("Wait", chat_id=first.chat_id)
        stage.do(turns.cancel, unheard.id)
        stage.complete(first)

        attempt = plan(stage, stage.claim(stage.enqueue("And?", chat_id=first.chat_id).id))

        assert attempt.call.is_chained
        assert sent(attempt) == ["And?"]

    def test_turns_that_ended_without_an_answer_are_news(self, stage: "Stage") -> None:
        first = second_turn(stage)
        stage.fail(first)

        attempt = plan(stage, stage.claim(stage.enqueue("Please!", chat_id=first.chat_id).id))

        assert attempt.call.previous_response_id == "resp_1"
        assert sent(attempt) == ["And?", "Please!"]


class TestThreads:
    """Anthropic's threads keep the instructions, options and tools that they were opened with."""

    USUAL: ClassVar[dict[str, Any]] = {"provider": "threads", "options": {"temperature": 0}, "tools": ("look",)}

    def opened(self, stage: "Stage") -> Attempt:
        """Return the answered first turn of a chat, which opened a thread."""
        attempt = plan(stage, stage.claim(stage.enqueue(**self.USUAL).id))
        origin = Origin(credential=attempt.credential, response_id="msg_1", anchors=True, terms=attempt.terms)
        said = (Message(role="assistant", parts=(Text(text="Hi"),)),)
        stage.do(store.complete, attempt.turn, Ended(outcome=AttemptOutcome.COMPLETED), said, origin)
        return attempt

    def following(self, stage: "Stage", first: Attempt, **fields: Any) -> Claimed:
        return stage.claim(stage.enqueue("And?", chat_id=first.turn.chat_id, **(self.USUAL | fields)).id)

    def test_a_thread_is_continued_on_the_same_terms(self, stage: "Stage") -> None:
        attempt = plan(stage, self.following(stage, self.opened(stage)))

        assert attempt.call.previous_response_id == "msg_1"
        assert sent(attempt) == ["And?"]

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"options": {"temperature": 1}}, id="other options"),
            pytest.param({"tools": ()}, id="other tools"),
        ],
    )
    def test_on_other_terms_everything_is_sent(self, stage: "Stage", fields: dict[str, Any]) -> None:
        attempt = plan(stage, self.following(stage, self.opened(stage), **fields))

        assert attempt.call.previous_response_id is None
        assert sent(attempt) == WHOLE

    def test_so_it_is_with_other_instructions(self, stage: "Stage") -> None:
        first = self.opened(stage)
        stage.do(Connection.execute, update(chats).values(instructions="Be brief."))

        assert not plan(stage, self.following(stage, first)).call.is_chained

    def test_so_it_is_with_a_tool_that_is_described_in_other_words(self, stage: "Stage") -> None:
        first = self.opened(stage)
        reworded = replace(TOOLBOX.tools["look"], description="Looks again.")

        attempt = plan(stage, self.following(stage, first), replace(PLANNER, toolbox=Toolbox({"look": reworded})))

        assert not attempt.call.is_chained

    def test_what_hears_its_terms_with_every_call_is_continued_on_any(self, stage: "Stage") -> None:
        attempt = plan(stage, second_turn(stage, options={"temperature": 1}, tools=("look",)))

        assert attempt.call.is_chained
        assert attempt.terms == ""

    @pytest.mark.parametrize(("share", "is_chained"), [(0.9, True), (1.1, False)])
    def test_a_thread_is_continued_only_while_it_is_surely_kept(
        self, stage: "Stage", share: float, is_chained: bool
    ) -> None:
        first = self.opened(stage)
        age_anchor(stage, share * THREAD_KEPT_FOR)

        assert plan(stage, self.following(stage, first)).call.is_chained is is_chained

    def test_a_call_may_open_one_as_long_as_nothing_broke(self, stage: "Stage") -> None:
        assert plan(stage, stage.claim(stage.enqueue(**self.USUAL).id)).call.may_chain

    def test_none_is_opened_while_chains_rest(self, stage: "Stage") -> None:
        credential = self.opened(stage).credential
        stage.do(broke, credential, tolerated=1, rest=timedelta(hours=1))

        attempt = plan(stage, stage.claim(stage.enqueue(**self.USUAL).id))

        assert not attempt.call.may_chain
        assert attempt.health == Health(breaks=1, is_resting=True)

    def test_none_is_opened_by_a_turn_that_was_healed(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(**self.USUAL).id)
        plan(stage, turn)

        assert not plan(stage, heal(stage, turn)).call.may_chain


class TestToolSteps:
    def called(self, stage: "Stage", *calls: ToolCall) -> Claimed:
        """Return a turn whose model waits for the results of *calls*."""
        turn = stage.claim(stage.enqueue(tools=("look",)).id)
        plan(stage, turn)
        return stage.call_tools(turn, *calls)

    def test_the_step_after_tools_sends_their_results_and_nothing_else(self, stage: "Stage") -> None:
        turn = stage.tell(self.called(stage, LOOK), SEEN)

        attempt = plan(stage, turn)

        assert attempt.call.previous_response_id == "resp_1"
        assert attempt.call.history == (Message(role="user", parts=(SEEN,)),)
        assert attempt.call.request_id == f"{turn.id}/2.1"
        assert not attempt.call.continues
        assert [(row["step"], row["number"]) for row in stage.attempts(turn.id)] == [(1, 1), (2, 1)]

    def test_where_it_cannot_be_chained_it_sends_the_calls_with_their_results(self, stage: "Stage") -> None:
        turn = stage.tell(self.called(stage, LOOK), SEEN)

        attempt = plan(stage, turn, with_config(store=False))

        assert attempt.call.history == (
            Message(role="user", parts=(Text(text="Hello"),)),
            Message(role="assistant", parts=(Text(text="Hm"), LOOK)),
            Message(role="user", parts=(SEEN,)),
        )
        assert not attempt.call.continues

    def test_calls_that_were_never_answered_break_the_chain_and_are_told_as_interrupted(
        self, stage: "Stage"
    ) -> None:
        turn = self.called(stage, LOOK)
        stage.do(store.complete_after_tools, turn)

        attempt = plan(stage, stage.claim(stage.enqueue("Never mind", chat_id=turn.chat_id).id))

        assert attempt.call.previous_response_id is None
        assert ToolResult(call_id="a", output=INTERRUPTED, is_error=True) in parts(attempt)

    def test_results_of_us_and_of_the_producer_complete_a_chain_together(self, stage: "Stage") -> None:
        asked, told = LOOK.model_copy(update={"call_id": "b"}), ToolResult(call_id="b", output="blue")
        turn = self.called(stage, LOOK, asked)
        stage.do(store.store_messages, turn, (Message(role="user", parts=(SEEN,)),))
        stage.do(store.complete_after_tools, turn)
        answer = stage.enqueue(chat_id=turn.chat_id, text=None, parts=[told.model_dump()])

        attempt = plan(stage, stage.claim(answer.id))

        assert attempt.call.previous_response_id == "resp_1"
        assert parts(attempt) == [SEEN, told]

    def test_the_offered_tools_are_described_to_the_model(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(tools=("look",)).id)

        (spec,) = plan(stage, turn).call.tools

        assert spec == ToolSpec(name="look", description="Looks.", parameters=Place.model_json_schema())

    def test_a_tool_that_is_not_offered_is_not_described(self, stage: "Stage") -> None:
        assert plan(stage, stage.claim(stage.enqueue().id)).call.tools == ()


class TestPauses:
    @pytest.mark.parametrize("provider", ["openai", "anthropic"])
    def test_the_step_after_a_pause_goes_on_with_what_was_said(self, stage: "Stage", provider: str) -> None:
        turn = stage.claim(stage.enqueue(provider=provider).id)
        plan(stage, turn)
        paused = stage.complete_step(turn, "Let me see …")

        attempt = plan(stage, stage.do(store.next_step, paused))

        assert attempt.call.continues
        assert attempt.call.previous_response_id is None
        assert sent(attempt) == ["Hello", "Let me see …"]
        assert attempt.call.request_id == f"{turn.id}/2.1"

    def test_a_first_step_continues_nothing_though_the_model_spoke_last(self, stage: "Stage") -> None:
        failed = second_turn(stage)
        plan(stage, failed)
        stage.fail(failed)
        stage.do(
            Connection.execute,
            messages.delete().where(messages.c.turn_id == failed.id),
        )

        attempt = plan(stage, stage.claim(stage.do(turns.retry, failed.id).id))

        assert sent(attempt) == ["Hello", "Hi"]
        assert not attempt.call.continues


class TestSeals:
    def test_whoever_sealed_it_gets_it_back(self, stage: "Stage") -> None:
        turn = second_turn(stage, *SEALED)

        attempt = plan(stage, replace(turn, anchor=None))

        assert parts(attempt) == [Text(text="Hello"), Text(text="Hi"), *SEALED, Text(text="And?")]

    def test_another_model_of_the_same_key_gets_it_as_well(self, stage: "Stage") -> None:
        attempt = plan(stage, second_turn(stage, *SEALED, model="n"))

        assert not attempt.call.is_chained
        assert set(SEALED) <= set(parts(attempt))

    @pytest.mark.parametrize(
        ("fields", "planner"),
        [
            pytest.param({}, with_key("other"), id="another key"),
            pytest.param({}, with_config(base_url="https://proxy.example/v1"), id="another address"),
            pytest.param({"provider": "other"}, PLANNER, id="another provider"),
        ],
    )
    def test_nobody_else_gets_what_is_sealed(
        self, stage: "Stage", fields: dict[str, Any], planner: Planner
    ) -> None:
        attempt = plan(stage, second_turn(stage, *SEALED, **fields), planner)

        assert sent(attempt) == WHOLE
        assert not {type(part) for part in parts(attempt)} & {Reasoning, WebSearch}

    def test_a_turn_that_was_healed_sends_everything_and_nothing_sealed(self, stage: "Stage") -> None:
        turn = second_turn(stage, *SEALED, Reasoning(text="So."))
        assert plan(stage, turn).call.is_chained

        attempt = plan(stage, heal(stage, turn))

        assert not attempt.call.is_chained
        assert parts(attempt) == [Text(text="Hello"), Text(text="Hi"), Reasoning(text="So."), Text(text="And?")]
        assert [row["number"] for row in stage.attempts(turn.id)] == [1, 2]

    def test_the_turn_after_a_healed_one_is_chained_again(self, stage: "Stage") -> None:
        turn = second_turn(stage)
        plan(stage, turn)
        healed = heal(stage, turn)
        plan(stage, healed)
        stage.complete(healed, response_id="resp_2")

        attempt = plan(stage, stage.claim(stage.enqueue("Third", chat_id=turn.chat_id).id))

        assert attempt.call.previous_response_id == "resp_2"
        assert sent(attempt) == ["Third"]


class TestComingBack:
    def left(self, stage: "Stage", **fields: Any) -> Claimed:
        """Return a turn whose worker was lost while its background response went on."""
        turn = stage.claim(stage.enqueue(background=True).id)
        plan(stage, turn)
        stage.keep(turn, **fields)
        stage.silence(turn.worker_id)
        stage.do(upkeep.rescue, timedelta(seconds=15))
        return stage.claim(turn.id)

    def test_a_successor_comes_back_to_the_response_and_asks_for_nothing(self, stage: "Stage") -> None:
        turn = self.left(stage)
        assert turn.checkpoint is not None

        attempt = plan(stage, turn)

        left = turn.checkpoint
        assert attempt.call.running == Running(response_id="resp_9", began_at=left.began_at, cursor=left.cursor)
        assert (attempt.call.background, attempt.call.history, attempt.call.is_chained) == (True, (), False)
        assert (attempt.call.model, attempt.call.request_id) == ("m", f"{turn.id}/1.2")
        assert attempt.turn.checkpoint == left
        assert attempt.call.is_resumed
        assert [(row["resumed"], row["outcome"]) for row in stage.attempts(turn.id)] == [
            (None, "lost"),
            (None, "running"),
        ]

    @pytest.mark.parametrize("field", ["provider", "base_url", "key", "model"])
    def test_nobody_comes_back_to_a_response_of_another_credential(self, stage: "Stage", field: str) -> None:
        elsewhere = HERE.model_copy(update={field: "other"})

        attempt = plan(stage, self.left(stage, credential=elsewhere))

        assert attempt.call.running is None
        assert sent(attempt) == ["Hello"]
        assert attempt.call.background

    def test_a_worker_with_another_key_does_not_come_back(self, stage: "Stage") -> None:
        assert plan(stage, self.left(stage), with_key("other")).call.running is None

    def test_a_healed_turn_asks_anew(self, stage: "Stage") -> None:
        turn = self.left(stage)
        plan(stage, turn)

        attempt = plan(stage, heal(stage, turn))

        assert attempt.call.running is None
        assert sent(attempt) == ["Hello"]


class TestBackground:
    @pytest.mark.parametrize(
        ("provider", "background", "is_background"),
        [
            pytest.param("openai", None, False, id="neither"),
            pytest.param("openai", True, True, id="the turn"),
            pytest.param("background", None, True, id="the provider"),
            pytest.param("background", False, False, id="the provider, but not the turn"),
            pytest.param("anthropic", False, False, id="a provider that cannot, and need not"),
        ],
    )
    def test_the_turn_decides_and_else_its_provider(
        self, stage: "Stage", provider: str, background: bool | None, is_background: bool
    ) -> None:
        turn = stage.claim(stage.enqueue(provider=provider, background=background).id)

        attempt = plan(stage, turn)

        assert attempt.call.background is is_background
        assert attempt.obstacle is None


class TestObstacles:
    @pytest.mark.parametrize(
        ("fields", "planner", "obstacle"),
        [
            pytest.param(
                {"provider": "nobody"},
                PLANNER,
                "The worker has no provider nobody; add [providers.nobody] to its turnkeeper.toml.",
                id="a provider that nobody knows",
            ),
            pytest.param(
                {"provider": "modelless"},
                PLANNER,
                "No model is named; name one in the turn or the chat, or set model in [providers.modelless].",
                id="no model",
            ),
            pytest.param(
                {"tools": ("look", "teleport", "fly")},
                PLANNER,
                "The worker has no tool teleport; install the package that brings it, or leave it out.",
                id="a tool that nobody has",
            ),
            pytest.param(
                {"provider": "anthropic", "background": True},
                PLANNER,
                "The provider anthropic has no background responses; set background to false, or name another.",
                id="a provider without background responses",
            ),
            pytest.param(
                {"background": True},
                with_config(store=False),
                "The provider openai has no background responses; set background to false, or name another.",
                id="a provider that keeps no responses",
            ),
        ],
    )
    def test_what_is_in_the_way_is_told_with_what_to_do_about_it(
        self, stage: "Stage", fields: dict[str, Any], planner: Planner, obstacle: str
    ) -> None:
        turn = stage.claim(stage.enqueue(**fields).id)

        attempt = plan(stage, turn, planner)

        assert attempt.obstacle == Obstacle(obstacle, Signal.UNKNOWN_PROVIDER, turn.provider)
        assert stage.attempts(turn.id)[0]["outcome"] == "running"

    def test_a_turn_may_name_the_model_that_its_provider_does_not(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(provider="modelless", model="n").id)

        attempt = plan(stage, turn)

        assert (attempt.obstacle, attempt.call.model, attempt.turn.model) == (None, "n", "n")
