"""The command line as people and scripts meet it: exit codes, JSON, and one line for every mistake."""

import json

import pytest

from turnkeeper import TurnState

from .conftest import Site


def one_line(text: str) -> str:
    """Return the only line of *text*; a traceback, or silence, is no line."""
    (line,) = text.splitlines()
    return line


def count_turns(site: Site) -> int:
    with site.keeper._engine.connect() as connection:
        return connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM turns) + (SELECT count(*) FROM chats)"
        ).scalar_one()


def test_a_script_enqueues_follows_and_shows(site: Site) -> None:
    enqueued = site.cli("enqueue", "Hello from a script")
    turn_id = enqueued.out.strip()

    followed = site.cli("follow", turn_id, "--json")

    assert (enqueued.code, followed.code) == (0, 0)
    events = [json.loads(line) for line in followed.out.splitlines()]
    assert events[0]["type"] == "turn.started"
    assert events[-1]["type"] == "turn.completed"
    assert {event["turn_id"] for event in events} == {turn_id}
    shown = json.loads(site.cli("show", turn_id, "--json").out)
    assert shown["state"] == "completed"
    assert "Hello from a script" in shown["text"]
    assert [attempt["number"] for attempt in shown["attempts"]] == [1]
    expected = {"number", "outcome", "kind", "status_code", "delay_ms", "chained", "started_at", "finished_at"}
    assert expected <= shown["attempts"][0].keys()
    assert {"chat_id", "error", "usage", "messages"} <= shown.keys()


def test_a_chat_is_continued_by_its_id(site: Site) -> None:
    first = json.loads(site.cli("enqueue", "--json", "One").out)
    site.cli("follow", first["turn_id"])

    second = site.cli("enqueue", "--chat", first["chat_id"], "Two").out.strip()

    assert site.cli("follow", second).code == 0
    shown = json.loads(site.cli("show", second, "--json").out)
    assert shown["chat_id"] == first["chat_id"]
    assert "2 user messages" in shown["text"]


def test_follow_tells_failure_and_cancellation_by_its_exit_code(site: Site) -> None:
    failed = site.enqueue("Try sim:unauthorized")
    word = site.script({"type": "stall", "seconds": 600})
    cancelled = site.enqueue(f"Wait {word}")
    site.cli("cancel", str(cancelled.id))

    assert site.cli("follow", str(failed.id)).code == 3
    assert site.cli("follow", str(cancelled.id)).code == 4


def test_whoever_retries_without_a_broker_is_told_that_the_turn_is_stored(site: Site) -> None:
    failed = site.run("Try sim:unauthorized")
    without_broker = site.running.addresses.environment() | {"TURNKEEPER_BROKER_URL": "redis://127.0.0.1:1/0"}

    retried = site.cli("retry", str(failed.id), **without_broker)

    turn_id = retried.out.strip()
    assert retried.code == 2
    assert f"turn {turn_id} is stored" in one_line(retried.err)
    assert site.cli("follow", turn_id).code == 3


def test_the_idempotency_key_gives_the_same_id(site: Site) -> None:
    ids = {site.cli("enqueue", "--idempotency-key", "cli-1", "Once").out for _ in range(2)}

    assert len(ids) == 1


def test_providers_are_listed_with_what_they_lack(site: Site) -> None:
    (site.folder / "turnkeeper.toml").write_text(
        '[providers.mine]\nbase_url = "http://127.0.0.1:1/v1"\napi_key_env = "MY_KEY"\n', encoding="utf-8"
    )
    try:
        rows = {row["name"]: row for row in json.loads(site.cli("providers", "--json").out)}
    finally:
        (site.folder / "turnkeeper.toml").write_text("", encoding="utf-8")

    assert rows["simulator"]["status"] == "ready"
    assert rows["mine"]["status"] == "MY_KEY is not set"


def test_a_built_in_provider_appears_with_its_key(site: Site) -> None:
    rows = {row["name"] for row in json.loads(site.cli("providers", "--json", OPENAI_API_KEY="sk-x").out)}

    assert "openai" in rows
    assert "anthropic" not in rows


def test_check_finds_everything_well(site: Site) -> None:
    checked = site.cli("check", "--json")

    assert checked.code == 0
    assert all(finding["ok"] for finding in json.loads(checked.out))


NOBODY = "00000000-0000-0000-0000-00000000dead"


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        pytest.param(["enqueue", "--provider", "nope", "Hi"], None, "configured: sim", id="an unknown provider"),
        pytest.param(["enqueue", "--chat", NOBODY, "Hi"], None, "no chat has the id", id="an unknown chat"),
        pytest.param(["enqueue", "--chat", "seven", "Hi"], None, "chat_id", id="a chat id that is none"),
        pytest.param(["enqueue", ""], None, "the text is empty", id="an empty text"),
        pytest.param(["enqueue", "-"], " \n\t", "the text is empty", id="a blank text"),
        pytest.param(["enqueue", "-"], "x" * 11_000_000, "shorten it", id="11 MB of text"),
        pytest.param(["enqueue", "-"], "a\0b", "NUL", id="a NUL character"),
        pytest.param(["enqueue"], None, "text", id="no text at all"),
        pytest.param(["show", NOBODY], None, "no turn has the id", id="an unknown turn to show"),
        pytest.param(["follow", NOBODY], None, "no turn has the id", id="an unknown turn to follow"),
        pytest.param(["cancel", "seven"], None, "no id", id="a turn id that is none"),
        pytest.param(["frobnicate"], None, "No such command", id="an unknown command"),
        pytest.param(["worker", "--concurrency", "many"], None, "--concurrency", id="a number that is none"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    site: Site, arguments: list[str], stdin: str | None, says: str
) -> None:
    before = count_turns(site)

    ran = site.cli(*arguments, stdin=stdin)

    assert ran.code == 2
    assert ran.out == ""
    assert says in one_line(ran.err)
    assert count_turns(site) == before


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        pytest.param("[providers", "turnkeeper.toml is no valid TOML", id="broken TOML"),
        pytest.param("drain_second = 3", "drain_second", id="a misspelt setting"),
        pytest.param("[providers.x]\nbase_url = 'ftp://x'", "providers.x.base_url", id="a provider's bad address"),
        pytest.param(
            "beat_seconds = 10", "beat_seconds (10) must be at most a third", id="a beat that is too slow"
        ),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_that_names_the_setting(site: Site, toml: str, says: str) -> None:
    (site.folder / "turnkeeper.toml").write_text(toml, encoding="utf-8")
    try:
        ran = site.cli("enqueue", "Hi")
    finally:
        (site.folder / "turnkeeper.toml").write_text("", encoding="utf-8")

    assert ran.code == 2
    assert says in one_line(ran.err)


@pytest.mark.parametrize(
    "command", [["enqueue", "--provider", "openai", "--model", "m", "Hi"], ["worker"], ["migrate"]]
)
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgresql://nobody@127.0.0.1:1/none", id="nobody listens"),
        pytest.param("mysql://127.0.0.1/x", id="not PostgreSQL"),
        pytest.param("not a url", id="not a URL"),
    ],
)
def test_a_wrong_database_url_is_one_line_that_names_the_setting(site: Site, command: list[str], url: str) -> None:
    ran = site.cli(*command, TURNKEEPER_DATABASE_URL=url, OPENAI_API_KEY="sk-x")

    assert ran.code == 2
    assert "TURNKEEPER_DATABASE_URL" in one_line(ran.err)


@pytest.mark.parametrize(
    "command",
    [["enqueue", "--provider", "openai", "--model", "m", "Hi"], ["worker"]],
    ids=["a producer", "a worker"],
)
def test_who_finds_a_database_without_tables_says_that_it_wants_to_be_migrated(
    site: Site, command: list[str]
) -> None:
    site.running.postgres.create_database("empty")

    ran = site.cli(*command, TURNKEEPER_DATABASE_URL=site.running.postgres.url("empty"), OPENAI_API_KEY="sk-x")

    assert ran.code == 2
    assert "run `turnkeeper migrate`" in one_line(ran.err)


def test_classify_answers_line_by_line(site: Site) -> None:
    throttled = '{"id": "a", "http_status": 429, "headers": {"retry-after": "3"}}'
    rejected = '{"id": "b", "http_status": 401}'

    ran = site.cli("classify", stdin=f"{throttled}\nnonsense\n{rejected}\n")

    first, broken, last = (json.loads(line) for line in ran.out.splitlines())
    assert ran.code == 1
    assert (first["kind"], first["retry_after_s"]) == ("rate_limit", 3.0)
    assert "error" in broken
    assert last["kind"] == "auth"


def test_the_stored_error_is_shown_by_a_new_process(site: Site) -> None:
    view = site.run("Try", provider="wrong_key")

    shown = json.loads(site.cli("show", str(view.id), "--json").out)

    assert view.state is TurnState.FAILED
    assert shown["error"]["kind"] == "auth"
    assert "sk-not-the-simulators-key" not in json.dumps(shown)
