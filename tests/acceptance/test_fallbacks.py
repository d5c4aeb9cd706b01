"""Turns that fall back on other models, through real workers: what each provider is sent, and what people see."""

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turnkeeper import AttemptOutcome, ErrorKind, TurnState
from turnkeeper.events import TurnPart, TurnRetry
from turnkeeper.views import TurnView
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES
from turnkeeper_ops.services.process import poll

from .conftest import Record, Site, open_site_with
from .tools_package import install_tools

AS_BEFORE: dict[str, Any] = {"provider": None, "model": None}
FELL_BACK, COMPLETED = AttemptOutcome.FELL_BACK, AttemptOutcome.COMPLETED
UNAUTHORIZED = {"type": "status", "status": 401}
CALLS = {"type": "answer", "reasoning": "I must look.", "calls": [{"name": "look", "arguments": {"mark": "a"}}]}
SEALED = {"encrypted_content", "signature", "rs_", "thinking", "reasoning"}


def settings(url: str) -> Iterator[str]:
    yield "lease_ttl_seconds = 3.0"
    yield "beat_seconds = 0.5"
    yield from ("[retry]", "backoff_base_seconds = 0.05", "backoff_cap_seconds = 0.1", "max_attempts = 3")
    for name, lines in {
        "sealing": ["store = false"],
        "careful": [f'fallbacks = ["{SIMULATOR_MESSAGES}", "{SIMULATOR_CHAT}"]'],
        "lost": ["background = true", "retry = { max_attempts = 1 }"],
    }.items():
        yield f"[providers.{name}]"
        yield f'base_url = "{url}/v1"'
        yield 'api_key_env = "TURNKEEPER_SIMULATOR_KEY"'
        yield 'model = "sim-1"'
        yield from lines


@pytest.fixture(scope="module")
def safety_net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack with tools whose workers soon have enough of a provider."""
    tools = tmp_path_factory.mktemp("tools")
    install_tools(tools)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tools), os.environ.get("PYTHONPATH")))))
        yield from open_site_with(tmp_path_factory.mktemp("net"), settings, concurrency=20)


def ways(view: TurnView) -> list[tuple[str, AttemptOutcome]]:
    """Return who tried, and how that ended."""
    return [(one.provider, one.outcome) for one in view.attempts]


def words(call: dict[str, Any]) -> str:
    return json.dumps(call["input"])


def retries(record: Record) -> list[tuple[str, str | None, str | None]]:
    return [(one.reason, one.provider, one.model) for one in record.events if isinstance(one, TurnRetry)]


@pytest.mark.parametrize("first", [SIMULATOR, "sealing"], ids=["stored", "sealed"])
def test_a_chat_with_reasoning_and_tools_falls_back_on_two_other_apis_and_returns(
    safety_net: Site, first: str
) -> None:
    begun = safety_net.run(
        f"The first message {safety_net.script(CALLS)}",
        provider=first,
        tools=("look",),
        fallbacks=[SIMULATOR_MESSAGES, f"{SIMULATOR_CHAT}/sim-1"],
    )
    assert (begun.state, ways(begun)) == (TurnState.COMPLETED, [(first, COMPLETED)] * 2)

    words_of_401 = safety_net.script(UNAUTHORIZED, UNAUTHORIZED)
    fallen = safety_net.record(
        safety_net.enqueue(f"The second message {words_of_401}", chat=begun.chat_id, **AS_BEFORE)
    )
    returned = safety_net.run("The third message", chat=begun.chat_id, **AS_BEFORE)

    assert ways(fallen.view) == [(first, FELL_BACK), (SIMULATOR_MESSAGES, FELL_BACK), (SIMULATOR_CHAT, COMPLETED)]
    assert "2 user messages" in fallen.view.text
    _, *instead = safety_net.calls(fallen.view.id)
    assert [one["status"] for one in instead] == [401, 200]
    for call in instead:
        assert call["previous_response_id"] is None
        assert not any(secret in words(call) for secret in SEALED)
        assert "seen a" in words(call)
    assert ways(returned) == [(first, COMPLETED)]
    (again,) = safety_net.calls(returned.id)
    assert again["previous_response_id"] is None
    assert "3 user messages" in returned.text
    assert ways(safety_net.run("The fourth message", chat=begun.chat_id, **AS_BEFORE)) == [(first, COMPLETED)]


def test_followers_hear_who_goes_on_and_take_back_what_was_said(safety_net: Site) -> None:
    cut = {"type": "cut", "at": 4}
    word = safety_net.script(cut, cut, cut)

    record = safety_net.record(safety_net.enqueue(f"Hello {word}", fallbacks=[SIMULATOR_CHAT]))

    assert retries(record) == [("retry", None, None)] * 2 + [("fall_back", SIMULATOR_CHAT, "sim-1")]
    assert record.tries[-2:] == [(FELL_BACK, ErrorKind.TIMEOUT), (COMPLETED, None)]
    assert all(before and not behind for before, behind in record.taken_back())
    assert record.read().text == record.view.text == record.answer
    assert safety_net.spent(record.view.id) == 0


def test_a_model_that_runs_dry_between_tools_is_replaced_in_the_middle_of_the_turn(safety_net: Site) -> None:
    word = safety_net.script(CALLS, {"type": "status", "status": 429, "complaint": "quota"})

    view = safety_net.run(
        f"Do it {word}", tools=("look",), fallbacks=[SIMULATOR_MESSAGES], options={"truncation": "auto"}
    )

    assert view.state is TurnState.COMPLETED
    assert ways(view) == [(SIMULATOR, COMPLETED), (SIMULATOR, FELL_BACK), (SIMULATOR_MESSAGES, COMPLETED)]
    assert [one.step for one in view.attempts] == [1, 2, 2]
    *_, last = safety_net.calls(view.id)
    assert "seen a" in words(last)
    assert not any(secret in words(last) for secret in SEALED)
    assert view.usage is not None
    assert view.usage["output_tokens"] == sum((one.usage or {}).get("output_tokens", 0) for one in view.attempts)


def test_a_provider_may_have_fallbacks_for_turns_that_name_none(safety_net: Site) -> None:
    word = safety_net.script(UNAUTHORIZED)

    helped = safety_net.run(f"Hello {word}", provider="careful")
    alone = safety_net.run(f"Hello {safety_net.script(UNAUTHORIZED)}", provider="careful", fallbacks=[])

    assert ways(helped) == [("careful", FELL_BACK), (SIMULATOR_MESSAGES, COMPLETED)]
    assert (alone.state, ways(alone)) == (TurnState.FAILED, [("careful", AttemptOutcome.FAILED)])


def test_where_nobody_can_answer_the_last_one_s_error_is_told(safety_net: Site) -> None:
    word = safety_net.script(UNAUTHORIZED, {"type": "status", "status": 429, "complaint": "quota"})

    view = safety_net.run(f"Hello {word}", fallbacks=[SIMULATOR_CHAT])

    assert view.state is TurnState.FAILED
    assert view.error is not None
    assert (view.error.kind, view.error.provider) == (ErrorKind.USAGE_LIMIT, SIMULATOR_CHAT)


@pytest.mark.parametrize("name", ["content-filter", "context-overflow"])
def test_what_was_declined_or_is_too_long_is_not_taken_elsewhere(safety_net: Site, name: str) -> None:
    view = safety_net.run(f"Hello sim:{name}", fallbacks=[SIMULATOR_CHAT])

    assert ways(view) == [(SIMULATOR, AttemptOutcome.FAILED)]


def test_a_provider_that_is_switched_off_falls_back(safety_net: Site) -> None:
    safety_net.keeper.disable_provider("careful")

    def fallen() -> TurnView | None:
        view = safety_net.run("Hello", provider="careful")
        return view if ways(view) == [("careful", FELL_BACK), (SIMULATOR_MESSAGES, COMPLETED)] else None

    view = poll(fallen, within=timedelta(seconds=10))
    safety_net.keeper.enable_provider("careful")

    assert view is not None
    assert view.attempts[0].kind == ErrorKind.PROVIDER_DISABLED


def test_a_background_response_that_is_left_behind_is_called_off(safety_net: Site) -> None:
    """Its stream tells of an error, and whether it is over can then not be asked."""
    gone = {"type": "error_event", "at": 2, "retrieval": "unavailable"}
    turn = safety_net.enqueue(f"Go on {safety_net.script(gone)}", provider="lost", fallbacks=[SIMULATOR_CHAT])
    next(event for event in safety_net.keeper.follow(turn.id) if isinstance(event, TurnPart))

    view = safety_net.finish(turn)

    assert (view.state, view.provider) == (TurnState.COMPLETED, SIMULATOR_CHAT)

    def called_off() -> list[str]:
        fetches = [fetch["kind"] for call in safety_net.calls(turn.id) for fetch in call["fetches"]]
        return [kind for kind in fetches if kind == "cancel"]

    assert poll(called_off, within=timedelta(seconds=20))

    def nothing_left() -> bool:
        with safety_net.keeper._engine.connect() as connection:
            return connection.exec_driver_sql("SELECT count(*) FROM left_responses").scalar_one() == 0

    assert poll(nothing_left, within=timedelta(seconds=20))


class TestCommandLine:
    def test_fallbacks_are_named_shown_and_checked(self, safety_net: Site) -> None:
        word = safety_net.script(UNAUTHORIZED)
        turn = safety_net.cli("enqueue", f"Hello {word}", "--fallback", f"{SIMULATOR_CHAT}/sim-1").out.strip()

        followed = safety_net.cli("follow", turn)
        shown = safety_net.cli("show", turn)

        assert followed.code == 0
        assert f"Falling back on {SIMULATOR_CHAT} sim-1." in " ".join(followed.out.split())
        assert f"instead of {SIMULATOR}" in " ".join(shown.out.split())

    def test_a_provider_that_is_none_is_refused_before_anything_is_stored(self, safety_net: Site) -> None:
        ran = safety_net.cli("enqueue", "Hello", "--fallback", "opnai/gpt-5")

        (line,) = ran.err.splitlines()
        assert (ran.code, ran.out) == (2, "")
        assert "no provider is called opnai" in line

    def test_flower_tells_who_answered_instead(self, safety_net: Site) -> None:
        view = safety_net.run(f"Hello {safety_net.script(UNAUTHORIZED)}", fallbacks=[SIMULATOR_CHAT])

        def result() -> str | None:
            task: dict[str, Any] = safety_net.flower(f"/api/task/info/{view.id}")
            return task["result"]

        told = poll(result, within=timedelta(seconds=20))
        assert told is not None
        assert f"{SIMULATOR_CHAT} sim-1 instead of {SIMULATOR}" in told


def test_a_fallback_that_nobody_has_is_an_error_of_the_settings(safety_net: Site, tmp_path: Path) -> None:
    path = tmp_path / "turnkeeper.toml"
    path.write_text('[providers.a]\nbase_url = "http://127.0.0.1:1/v1"\nfallbacks = ["b/m"]\n', encoding="utf-8")

    ran = safety_net.cli("providers", TURNKEEPER_CONFIG=str(path))

    (line,) = ran.err.splitlines()
    assert ran.code == 2
    assert "[providers.a] falls back on b, which is no provider here" in line
