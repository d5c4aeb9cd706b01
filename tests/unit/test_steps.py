"""What follows an answer: who answers for which calls, and when a turn stops."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from turnkeeper.messages import Message, Reasoning, Text, ToolCall, ToolResult
from turnkeeper.tools import Tool
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.providers import Answer
from turnkeeper_worker.steps import Finish, Following, GoOn, RunTools, results_message, what_follows
from turnkeeper_worker.store import Claimed
from turnkeeper_worker.tools import Toolbox

TURN = Claimed(
    id=UUID(int=1),
    chat_id=UUID(int=2),
    owner="",
    seq=1,
    epoch=1,
    worker_id=UUID(int=3),
    step=1,
    attempt=1,
    spent=0,
    healed=False,
    runs_tools=False,
    provider="openai",
    model="m",
    options={},
    instructions=None,
    tools=(),
    background=None,
    fallbacks=None,
    first_choice=None,
    checkpoint=None,
    anchor=None,
    usage=None,
    metered=False,
    elapsed=timedelta(0),
    is_cancelled=False,
    others_stand_back=False,
)
NOT_RUN = "The tool was not run: the turn has reached its limit of steps."


class Nothing(BaseModel):
    pass


def tool(name: str, *, idempotent: bool) -> Tool[Nothing]:
    return Tool(name=name, description="", arguments=Nothing, run=print, idempotent=idempotent)


TOOLBOX = Toolbox({"look": tool("look", idempotent=True), "pay": tool("pay", idempotent=False)})


def call(name: str, call_id: str | None = None) -> ToolCall:
    return ToolCall(call_id=call_id or f"call_{name}", name=name, arguments="{}")


def answer(*calls: ToolCall, finish: str | None = None) -> Answer:
    messages = (Message(role="assistant", parts=(Reasoning(text="Hm"), Text(text="So:"), *calls)),)
    return Answer(
        messages=messages,
        response_id="resp_1",
        model="m",
        usage=None,
        finish=finish or ("tool_calls" if calls else "stop"),
        can_anchor=True,
    )


def after(
    answer: Answer,
    *,
    tools: tuple[str, ...] = (),
    described: Any = None,
    step: int = 1,
    max_steps: int = 9,
) -> Following:
    """Return what follows in a turn that offers *tools*, and whose options describe the producer's."""
    options = {} if described is None else {"tools": described}
    turn = replace(TURN, tools=tools, options=options, step=step)
    return what_follows(answer, turn, TOOLBOX, max_steps=max_steps)


def names(following: Following) -> list[str]:
    """Return the tools that are run."""
    assert isinstance(following, RunTools), following
    return [run.call.name for run in following.runs]


class TestTheEnd:
    @pytest.mark.parametrize("finish", ["stop", "max_output_tokens", "content_filter", "refusal", "strange"])
    def test_an_answer_without_calls_ends_the_turn_in_the_models_words(self, finish: str) -> None:
        assert after(answer(finish=finish), tools=("look",)) == Finish(finish)

    def test_where_the_turn_offers_no_tool_every_call_is_the_producers(self) -> None:
        assert after(answer(call("look"), call("whether"))) == Finish("tool_calls")

    def test_a_turn_that_only_waits_for_its_producer_ends(self) -> None:
        described = [{"type": "function", "name": "ask_user"}]

        assert after(answer(call("ask_user")), tools=("look",), described=described) == Finish("tool_calls")


class TestPauses:
    def test_a_pause_goes_on(self) -> None:
        assert after(answer(finish="pause_turn")) == GoOn()

    @pytest.mark.parametrize("step", [3, 4])
    def test_a_pause_at_the_limit_of_steps_ends_the_turn(self, step: int) -> None:
        assert after(answer(finish="pause_turn"), step=step, max_steps=3) == Finish("pause_turn")


class TestOurTools:
    def test_the_tools_that_the_turn_offers_are_run_in_the_order_of_the_calls(self) -> None:
        calls = call("pay", "a"), call("look", "b"), call("pay", "c")

        following = after(answer(*calls), tools=("look", "pay"))

        assert following == RunTools(
            runs=(
                Run(call=calls[0], number=1, idempotent=False),
                Run(call=calls[1], number=2, idempotent=True),
                Run(call=calls[2], number=3, idempotent=False),
            ),
            awaits_more=False,
        )

    def test_calls_in_several_messages_are_one_step(self) -> None:
        one, two = answer(call("look", "a")), answer(call("pay", "b"))

        following = after(replace(one, messages=one.messages + two.messages), tools=("look", "pay"))

        assert names(following) == ["look", "pay"]

    def test_a_call_that_is_made_twice_under_one_id_is_one_run(self) -> None:
        following = after(answer(call("look", "a"), call("look", "a")), tools=("look",))

        assert names(following) == ["look"]

    def test_a_name_that_the_model_made_up_is_ours_to_answer_and_harmless_to_repeat(self) -> None:
        following = after(answer(call("whether")), tools=("look",))

        assert following == RunTools((Run(call=call("whether"), number=1, idempotent=True),), awaits_more=False)

    def test_so_is_a_tool_of_the_workers_that_the_turn_does_not_offer(self) -> None:
        assert names(after(answer(call("pay")), tools=("look",))) == ["pay"]


SHAPES = [
    pytest.param({"type": "function", "name": "ask_user", "parameters": {}}, id="Responses"),
    pytest.param({"type": "function", "function": {"name": "ask_user", "parameters": {}}}, id="Chat Completions"),
    pytest.param({"name": "ask_user", "input_schema": {"type": "object"}}, id="Anthropic Messages"),
    pytest.param({"type": "custom", "name": "ask_user"}, id="Responses, in free text"),
]


class TestTheProducersTools:
    @pytest.mark.parametrize("described", SHAPES)
    def test_what_the_options_describe_is_left_to_the_producer(self, described: dict[str, Any]) -> None:
        following = after(answer(call("look"), call("ask_user")), tools=("look",), described=[described])

        assert following == RunTools((Run(call=call("look"), number=1, idempotent=True),), awaits_more=True)

    @pytest.mark.parametrize("described", SHAPES)
    def test_a_name_that_is_described_and_offered_as_well_is_ours(self, described: dict[str, Any]) -> None:
        following = after(answer(call("ask_user")), tools=("ask_user",), described=[described])

        assert following == RunTools((Run(call=call("ask_user"), number=1, idempotent=True),), awaits_more=False)

    def test_ours_are_numbered_among_themselves(self) -> None:
        calls = answer(call("ask_user", "a"), call("look", "b"), call("ask_user", "c"), call("look", "d"))

        following = after(calls, tools=("look",), described=[{"name": "ask_user"}])

        assert isinstance(following, RunTools)
        assert [(run.call.call_id, run.number) for run in following.runs] == [("b", 1), ("d", 2)]

    @pytest.mark.parametrize(
        "described",
        [
            pytest.param([], id="none"),
            pytest.param("ask_user", id="a word"),
            pytest.param({"name": "ask_user"}, id="one that is in no list"),
            pytest.param(["ask_user", None, 7], id="a list of no objects"),
            pytest.param([{"type": "web_search"}], id="a tool without a name"),
            pytest.param([{"name": ["ask_user"]}], id="a name that is none"),
            pytest.param([{"function": "ask_user"}], id="a function that is none"),
            pytest.param([{"function": {"name": None}, "name": "ask_user"}], id="two shapes at once"),
        ],
    )
    def test_options_that_describe_no_such_tool_leave_nothing_to_the_producer(self, described: Any) -> None:
        assert names(after(answer(call("ask_user")), tools=("look",), described=described)) == ["ask_user"]

    def test_a_call_named_none_is_not_the_tool_without_a_name(self) -> None:
        following = after(answer(call("None")), tools=("look",), described=[{"type": "web_search"}])

        assert names(following) == ["None"]


class TestTheLimitOfSteps:
    @pytest.mark.parametrize(("step", "is_last"), [(1, False), (2, False), (3, True), (4, True)])
    def test_the_calls_of_the_last_step_are_not_made(self, step: int, is_last: bool) -> None:
        following = after(answer(call("look")), tools=("look",), step=step, max_steps=3)

        assert isinstance(following, Finish) is is_last

    def test_the_model_is_told_why_they_were_not_and_the_producers_stay_open(self) -> None:
        calls = answer(call("look"), call("ask_user"), call("whether"))

        following = after(calls, tools=("look",), described=[{"name": "ask_user"}], max_steps=1)

        told = tuple(
            ToolResult(call_id=f"call_{name}", output=NOT_RUN, is_error=True) for name in ("look", "whether")
        )
        assert following == Finish("step_limit", told)

    @pytest.mark.parametrize("finish", ["stop", "tool_calls"])
    def test_a_turn_that_ends_by_itself_knows_of_no_limit(self, finish: str) -> None:
        assert after(answer(finish=finish), tools=("look",), max_steps=1) == Finish(finish)


def test_results_are_one_message_of_the_users_side() -> None:
    results = [ToolResult(call_id="a", output="1"), ToolResult(call_id="b", output="2")]

    assert results_message(iter(results)) == (Message(role="user", parts=tuple(results)),)


def test_no_results_are_no_message() -> None:
    assert results_message([]) == ()
