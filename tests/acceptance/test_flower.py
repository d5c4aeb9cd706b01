"""What an operator sees in Flower: of each turn how it stands, and of no turn a word of what was said.

The pages are drawn by a real browser, where Chromium is installed; `TURNKEEPER_SCREENSHOTS` names a folder for
pictures of them.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from turnkeeper.turns import Enqueued
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

WITHIN = timedelta(seconds=20)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
DRAWING_MS = 5_000
WINDOW = "1500,700"
SECRET = f"whisper-{uuid4().hex}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack of its own, so that its list of turns is short."""
    yield from open_site(tmp_path_factory.mktemp("watched"), concurrency=8)


@pytest.fixture(scope="module")
def turns(watched: Site) -> dict[str, Enqueued]:
    """One turn for each way in which turns end, and one that waits."""
    refused = {"type": "status", "status": 429, "headers": {"Retry-After-Ms": "1500"}}
    patient = {"type": "status", "status": 503, "headers": {"Retry-After": "29"}}
    scripts = {
        "completed": (),
        "retried": (refused, {"type": "answer"}),
        "failed": ({"type": "status", "status": 401},),
        "cancelled": ({"type": "stall", "at": 1, "seconds": 600},),
        "waiting": (patient, {"type": "answer"}),
    }
    turns = {}
    for name, steps in scripts.items():
        word = watched.script(*steps) if steps else ""
        turns[name] = watched.enqueue(f"{SECRET} {word}")
    turns["chained"] = watched.enqueue(f"{SECRET} go on", chat=turns["completed"].chat_id)
    assert poll(lambda: "attempt 1" in shown(watched, turns["cancelled"]).get("args", ""), within=WITHIN)
    watched.keeper.cancel(turns["cancelled"].id)
    for name, turn in turns.items():
        if name != "waiting":
            watched.finish(turn)
    return turns


def shown(site: Site, turn: Enqueued) -> dict[str, Any]:
    """Return what Flower's API knows of a turn."""
    tasks: dict[str, dict[str, Any]] = site.flower("/api/tasks?limit=1000")
    return tasks.get(str(turn.id), {})


@pytest.mark.parametrize(
    ("name", "state", "tried"),
    [
        pytest.param("completed", "SUCCESS", "step 1, attempt 1, full history", id="completed"),
        pytest.param("chained", "SUCCESS", "step 1, attempt 1, chained", id="chained"),
        pytest.param("retried", "SUCCESS", "step 1, attempt 2, full history", id="retried"),
        pytest.param("failed", "FAILURE", "step 1, attempt 1, full history", id="failed"),
        pytest.param("cancelled", "REVOKED", "step 1, attempt 1, full history", id="cancelled"),
    ],
)
def test_each_turn_tells_its_chat_its_model_its_attempt_and_how_it_was_asked(
    watched: Site, turns: dict[str, Enqueued], name: str, state: str, tried: str
) -> None:
    turn = turns[name]
    label = f"simulator sim-1, {tried}, chat {turn.chat_id}"

    def told() -> bool:
        task = shown(watched, turn)
        return (task.get("state"), task.get("args")) == (state, label)

    assert poll(told, within=WITHIN), shown(watched, turn)


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        pytest.param("completed", "result", r"simulator sim-1, .*, in=\d+ out=\d+", id="completed: its tokens"),
        pytest.param("failed", "exception", r"auth: ", id="failed: its kind"),
        pytest.param("waiting", "args", r"^\w+, next attempt in \d+\.\d s: .*attempt 1,", id="waiting: of what"),
        pytest.param(
            "waiting", "exception", r"^\w+, next attempt in \d+\.\d s$", id="waiting: in its result's place"
        ),
        pytest.param("waiting", "eta", r"^20\d\d-", id="waiting: until when"),
    ],
)
def test_each_turn_tells_what_came_of_it(
    watched: Site, turns: dict[str, Enqueued], name: str, field: str, words: str
) -> None:
    def told() -> str:
        return str(shown(watched, turns[name]).get(field))

    assert poll(lambda: re.search(words, told()), within=WITHIN), told()


def test_a_turn_that_was_cancelled_before_a_worker_came_to_it_is_revoked_too(
    watched: Site, turns: dict[str, Enqueued]
) -> None:
    assert turns
    watched.running.workers.pop().kill()
    turn = watched.enqueue("Never mind")
    watched.keeper.cancel(turn.id)

    watched.running.start_worker()

    assert poll(lambda: shown(watched, turn).get("state") == "REVOKED", within=WITHIN)


def test_a_turn_that_came_through_a_retry_has_it_counted(watched: Site, turns: dict[str, Enqueued]) -> None:
    assert poll(lambda: shown(watched, turns["retried"]).get("retries") == 1, within=WITHIN)


@in_a_browser
def test_the_list_shows_every_turn_and_not_what_was_said(
    watched: Site, turns: dict[str, Enqueued], tmp_path: Path
) -> None:
    page = draw(watched, "/tasks", tmp_path, "flower-turns.png")

    rows = re.findall(r"<tr.*?</tr>", page, flags=re.DOTALL)
    for turn in turns.values():
        (row,) = [row for row in rows if str(turn.id) in row]
        assert f"full history, chat {turn.chat_id}" in row or f"chained, chat {turn.chat_id}" in row
    assert "auth: simulator rejected the credentials" in page
    assert SECRET not in page


@in_a_browser
def test_the_page_of_a_turn_shows_what_it_waits_for(
    watched: Site, turns: dict[str, Enqueued], tmp_path: Path
) -> None:
    page = draw(watched, f"/task/{turns['waiting'].id}", tmp_path, "flower-turn.png")

    assert re.search(r"\w+, next attempt in \d+\.\d s: simulator sim-1, step 1, attempt 1", page)
    assert SECRET not in page


@in_a_browser
def test_the_pages_offer_no_commands(watched: Site, turns: dict[str, Enqueued], tmp_path: Path) -> None:
    pages = [draw(watched, path, tmp_path) for path in ("/workers", f"/task/{turns['waiting'].id}")]

    assert not [
        button
        for page in pages
        for button in re.findall(r"<button.*?</button>", page, flags=re.DOTALL)
        if re.search(r"shut ?down|revoke|terminate|restart", button, flags=re.IGNORECASE)
    ]


def test_turns_are_shown_again_after_the_broker_was_away(watched: Site, turns: dict[str, Enqueued]) -> None:
    assert turns
    watched.running.redis.kill()
    watched.running.redis.start()

    def shows_a_new_turn() -> bool:
        turn = watched.enqueue("Hello again")
        watched.finish(turn)
        return bool(poll(lambda: shown(watched, turn).get("state") == "SUCCESS", within=timedelta(seconds=5)))

    assert poll(shows_a_new_turn, within=2 * WITHIN)
    # Not only when enough has come together to be sent.
    assert shows_a_new_turn()


def draw(site: Site, path: str, folder: Path, picture: str | None = None) -> str:
    """Open a page in the browser; return what it shows, and keep a picture of it where one is asked for."""
    assert BROWSER is not None
    url = site.running.addresses.flower_url + path
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={WINDOW}"]
    command += [f"--virtual-time-budget={DRAWING_MS}"]
    pictures = os.environ.get("TURNKEEPER_SCREENSHOTS")
    if picture and pictures:
        subprocess.run(
            [*command, f"--screenshot={Path(pictures) / picture}", url], check=True, capture_output=True
        )
    drawn = subprocess.run([*command, "--dump-dom", url], check=True, capture_output=True, text=True, timeout=60)
    return unescape(drawn.stdout)
