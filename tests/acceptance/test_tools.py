"""Tools that workers run: through real workers, with real crashes; what ran, how often, and what the model saw."""

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turnkeeper import AttemptOutcome, ToolRunState, Transcript, TurnState
from turnkeeper.events import TurnCommitted, TurnCompleted
from turnkeeper.messages import ToolResult
from turnkeeper.turns import Enqueued
from turnkeeper.views import TurnView
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES
from turnkeeper_ops.services.process import poll

from .conftest import APIS, Site, open_site
from .tools_package import install_tools

LINES = (
    "lease_ttl_seconds = 3.0",
    "beat_seconds = 0.5",
    "drain_seconds = 0.5",
    "max_steps = 4",
)
INTERRUPTED = "The tool call was interrupted before it gave a result."


@pytest.fixture(scope="module")
def tools_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    install_tools(folder)
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tools_folder: Path) -> Iterator[Site]:
    """A stack whose workers have the tools installed, and short leases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, (str(tools_folder), os.environ.get("PYTHONPATH"))))
        )
        yield from open_site(tmp_path_factory.mktemp("workshop"), concurrency=20, lines=LINES)


def calling(*calls: tuple[str, dict[str, Any] | str], text: str | None = None) -> dict[str, Any]:
    """Return a step of the simulator in which the model calls tools."""
    asked = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {"type": "answer", "text": text, "calls": asked}


def ask(site: Site, *steps: dict[str, Any], tools: tuple[str, ...], **options: Any) -> Enqueued:
    return site.enqueue(f"Do it {site.script(*steps)}", tools=tools, **options)


def results(view: TurnView) -> list[ToolResult]:
    """Return what the model was told of its calls, in order."""
    return [part for message in view.messages for part in message.parts if isinstance(part, ToolResult)]


def ran(folder: Path, view: TurnView) -> list[dict[str, Any]]:
    """Return what the tools themselves wrote down of a turn."""
    log = folder / "runs.log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [run for run in map(json.loads, lines) if run["key"].startswith(f"{view.id}/")]


@pytest.mark.parametrize("provider", APIS, ids=APIS.get)
def test_the_model_gets_the_results_of_its_calls_in_their_order_and_answers(
    workshop: Site, tools_folder: Path, provider: str
) -> None:
    slow, fast = {"seconds": 0.3, "mark": "a"}, {"seconds": 0.0, "mark": "b"}
    turn = ask(
        workshop,
        calling(("look", slow), ("weather", {"city": "Oslo"}), ("look", fast)),
        tools=("look", "weather"),
        provider=provider,
        owner="ada",
    )

    events = workshop.events(turn)

    view = workshop.keeper.show(turn.id)
    assert view.state is TurnState.COMPLETED
    assert [one.output for one in results(view)] == ["seen a", '{"city":"Oslo","degrees":21}', "seen b"]
    assert not any(one.is_error for one in results(view))
    assert [(one.step, one.outcome) for one in view.attempts] == [(1, "completed"), (2, "completed")]
    assert [(one.name, one.state) for one in view.tool_runs] == [
        ("look", ToolRunState.FINISHED),
        ("weather", ToolRunState.FINISHED),
        ("look", ToolRunState.FINISHED),
    ]
    assert {run["owner"] for run in ran(tools_folder, view)} == {"ada"}
    transcript = Transcript()
    transcript.feed(events)
    assert transcript.text == view.text
    assert [len(one.messages) for one in events if isinstance(one, TurnCommitted)] == [1, 1, 1]
    assert view.usage is not None
    spent = [one.usage["output_tokens"] for one in view.attempts if one.usage]
    assert view.usage["output_tokens"] == sum(spent)
    assert len(spent) == 2


def test_the_runs_of_a_step_go_on_side_by_side(workshop: Site, tools_folder: Path) -> None:
    turn = ask(workshop, calling(*[("look", {"seconds": 0.4})] * 4), tools=("look",))

    view = workshop.finish(turn)

    assert [run["at"] for run in ran(tools_folder, view)] == ["start"] * 4 + ["end"] * 4


def test_the_next_step_continues_from_the_calls_and_sends_nothing_but_their_results(workshop: Site) -> None:
    view = workshop.finish(ask(workshop, calling(("look", {})), tools=("look",)))

    _, second = workshop.calls(view.id)
    assert [one.chained for one in view.attempts] == [False, True]
    assert second["previous_response_id"] == view.attempts[0].response_id
    assert [item["type"] for item in second["input"]] == ["function_call_output"]
    next_turn = workshop.run("And now?", chat=view.chat_id)
    assert next_turn.attempts[0].chained


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        pytest.param("refuse", {}, "There is no such order.", id="a tool that refuses in its own words"),
        pytest.param("crash", {}, "The tool failed with RuntimeError.", id="an exception, without its message"),
        pytest.param("leave", {}, "The tool failed with SystemExit.", id="a tool that wants to end the process"),
        pytest.param(
            "block", {"seconds": 3}, "The tool gave no result within 0.5 s.", id="one that takes too long"
        ),
        pytest.param("strange", {}, "The tool returned object, which is no JSON.", id="one that returns no JSON"),
        pytest.param("weather", {}, "The arguments are wrong: city: Field required", id="a missing argument"),
        pytest.param("weather", '{"city": "Os', "The arguments are wrong: ", id="half of the arguments"),
        pytest.param("whether", {}, "There is no tool whether.", id="a name that the model made up"),
    ],
)
def test_what_goes_wrong_in_a_tool_is_told_to_the_model_and_the_turn_goes_on(
    workshop: Site, name: str, arguments: dict[str, Any] | str, told: str
) -> None:
    offered = ("refuse", "crash", "leave", "block", "strange", "weather")

    view = workshop.finish(ask(workshop, calling((name, arguments)), tools=offered))

    (result,) = results(view)
    assert view.state is TurnState.COMPLETED
    assert result.is_error
    assert result.output.startswith(told)
    assert "1234" not in view.model_dump_json()


def test_a_tool_that_blocks_holds_up_nobody_else(workshop: Site) -> None:
    turns = [ask(workshop, calling(("block", {"seconds": 0.4})), tools=("block",)) for _ in range(10)]
    views = [workshop.finish(turn) for turn in turns]

    assert {one.output for view in views for one in results(view)} == {"unblocked"}


def test_a_tool_that_changes_something_runs_once_though_its_worker_is_killed_in_the_middle(
    workshop: Site, tools_folder: Path
) -> None:
    turn = ask(workshop, calling(("pay", {"seconds": 60})), tools=("pay",))
    assert poll(lambda: ran(tools_folder, workshop.keeper.show(turn.id)), within=timedelta(seconds=20))
    workshop.replace_worker()

    view = workshop.finish(turn)

    assert view.state is TurnState.COMPLETED
    assert [run["at"] for run in ran(tools_folder, view)] == ["start"]
    (result,) = results(view)
    assert (result.output, result.is_error) == (INTERRUPTED, True)
    assert [one.state for one in view.tool_runs] == [ToolRunState.INTERRUPTED]
    asked, told = workshop.calls(view.id)
    assert [item["output"] for item in told["input"]] == [INTERRUPTED]
    assert asked["previous_response_id"] is None


def test_a_tool_that_may_runs_again_and_what_had_ended_is_not_repeated(workshop: Site, tools_folder: Path) -> None:
    calls = calling(("pay", {"mark": "it"}), ("look", {"seconds": 2, "mark": "all"}))
    turn = ask(workshop, calls, tools=("pay", "look"))

    def is_looking() -> bool:
        view = workshop.keeper.show(turn.id)
        return [one.state for one in view.tool_runs] == [ToolRunState.FINISHED, ToolRunState.STARTED]

    assert poll(is_looking, within=timedelta(seconds=20))
    workshop.replace_worker()

    view = workshop.finish(turn)

    assert [one.output for one in results(view)] == ["paid it", "seen all"]
    written = [(run["tool"], run["at"]) for run in ran(tools_folder, view)]
    assert written.count(("pay", "start")) == 1
    assert written.count(("look", "start")) == 2
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.COMPLETED] * 2


def test_a_cancel_in_the_middle_of_a_tool_ends_the_turn_and_the_next_one_knows(
    workshop: Site, tools_folder: Path
) -> None:
    turn = ask(workshop, calling(("pay", {"seconds": 60})), tools=("pay",))
    assert poll(lambda: ran(tools_folder, workshop.keeper.show(turn.id)), within=timedelta(seconds=20))

    workshop.keeper.cancel(turn.id)

    assert poll(lambda: workshop.keeper.show(turn.id).state.is_final, within=timedelta(seconds=1))
    view = workshop.keeper.show(turn.id)
    assert view.state is TurnState.CANCELLED
    assert [one.output for one in results(view)] == [INTERRUPTED]
    following = workshop.run("What happened?", chat=view.chat_id)
    assert following.state is TurnState.COMPLETED


def test_a_worker_that_shuts_down_leaves_the_tools_to_its_successor(workshop: Site, tools_folder: Path) -> None:
    turn = ask(workshop, calling(("look", {"seconds": 3, "mark": "all"})), tools=("look",))
    assert poll(lambda: ran(tools_folder, workshop.keeper.show(turn.id)), within=timedelta(seconds=20))
    leaving = workshop.running.workers.pop(0)
    workshop.running.start_worker()

    leaving.ask_to_stop()

    view = workshop.finish(turn)
    assert (view.state, [one.output for one in results(view)]) == (TurnState.COMPLETED, ["seen all"])
    assert [run["at"] for run in ran(tools_folder, view)] == ["start", "start", "end"]
    assert poll(lambda: leaving.exit_code() is not None, within=timedelta(seconds=20))
    assert leaving.exit_code() == 0
    leaving.stop()


@pytest.mark.parametrize("provider", APIS, ids=APIS.get)
def test_a_producer_answers_for_its_own_tools_in_the_next_turn(workshop: Site, provider: str) -> None:
    described = {
        SIMULATOR: {"type": "function", "name": "ask_user", "parameters": {"type": "object", "properties": {}}},
        SIMULATOR_CHAT: {
            "type": "function",
            "function": {"name": "ask_user", "parameters": {"type": "object", "properties": {}}},
        },
        SIMULATOR_MESSAGES: {"name": "ask_user", "input_schema": {"type": "object", "properties": {}}},
    }[provider]
    options = {"tools": [described]}
    turn = ask(
        workshop,
        calling(("look", {"mark": "it"}), ("ask_user", {})),
        tools=("look",),
        provider=provider,
        options=options,
    )
    events = workshop.events(turn)
    first = workshop.keeper.show(turn.id)
    (end,) = [one for one in events if isinstance(one, TurnCompleted)]
    (open_call,) = [
        part.call_id
        for message in first.messages
        for part in message.parts
        if part.type == "tool_call" and part.name == "ask_user"
    ]

    answered = workshop.finish(
        workshop.keeper.enqueue(
            first.chat_id,
            parts=(ToolResult(call_id=open_call, output="blue"),),
            provider=provider,
            model="sim-1",
            options=options,
        )
    )

    assert (first.state, end.finish) == (TurnState.COMPLETED, "tool_calls")
    assert [one.output for one in results(first)] == ["seen it"]
    assert answered.state is TurnState.COMPLETED
    assert answered.tools == ("look",)
    sent = json.dumps(workshop.calls(answered.id)[-1]["input"])
    assert "seen it" in sent
    assert "blue" in sent
    assert INTERRUPTED not in sent


def test_results_that_never_came_are_told_as_interrupted(workshop: Site) -> None:
    first = workshop.run("Ask me sim:tool", chat=None)

    second = workshop.run("Never mind", chat=first.chat_id)

    assert second.state is TurnState.COMPLETED
    assert not second.attempts[0].chained
    assert INTERRUPTED in json.dumps(workshop.calls(second.id)[-1]["input"])


def test_a_turn_that_never_stops_calling_is_stopped_at_its_limit(workshop: Site, tools_folder: Path) -> None:
    endless = [calling(("look", {"mark": str(number)})) for number in range(10)]

    turn = ask(workshop, *endless, tools=("look",))
    events = workshop.events(turn)

    view = workshop.keeper.show(turn.id)
    assert view.state is TurnState.COMPLETED
    assert len(workshop.calls(view.id)) == 4
    assert len([run for run in ran(tools_folder, view) if run["at"] == "start"]) == 3
    assert results(view)[-1].is_error
    assert [one.finish for one in events if isinstance(one, TurnCompleted)] == ["step_limit"]
    assert workshop.run("And now?", chat=view.chat_id).state is TurnState.COMPLETED


def test_a_tool_that_no_worker_has_is_a_matter_of_configuration(workshop: Site) -> None:
    view = workshop.finish(ask(workshop, {"type": "answer"}, tools=("teleport",)))

    assert view.state is TurnState.FAILED
    assert view.error is not None
    assert view.error.kind == "config"
    assert "no tool teleport" in (view.error.detail or "")


SEARCHES = {
    SIMULATOR: [{"type": "web_search"}],
    SIMULATOR_CHAT: [],
    SIMULATOR_MESSAGES: [{"type": "web_search_20250305", "name": "web_search"}],
}
"""How each API is told that the model may search by itself."""


def test_a_chat_goes_round_all_providers_with_tools_reasoning_and_searches_and_none_refuses_it(
    workshop: Site,
) -> None:
    everything = calling(("look", {"mark": "it"}), ("weather", {"city": "Oslo"}))
    everything |= {"reasoning": "Let me think.", "search": "rivers"}
    chat, views = None, []

    for number, provider in enumerate((SIMULATOR, SIMULATOR_MESSAGES, SIMULATOR_CHAT, SIMULATOR) * 2, start=1):
        answer = {"type": "answer", "reasoning": "So be it.", "search": "lakes"}
        views.append(
            workshop.run(
                f"Message {number} {workshop.script(everything, answer)}",
                chat=chat,
                provider=provider,
                tools=("look", "weather"),
                options={"tools": SEARCHES[provider]} if SEARCHES[provider] else {},
            )
        )
        chat = views[-1].chat_id

    assert [one.state for one in views] == [TurnState.COMPLETED] * 8
    assert {one.outcome for view in views for one in view.attempts} == {AttemptOutcome.COMPLETED}
    assert [len(view.attempts) for view in views] == [2] * 8
    for number, view in enumerate(views[1:], start=2):
        assert f"{number} user messages" in view.text
        assert "Message 1" in view.text
