"""What an import may cost: for producers next to nothing, and nowhere a connection, a thread or a setting."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOOK = """
import json, sys, threading
seen = {"connects": [], "opens": []}

def watch(event, arguments):
    if event == "socket.connect":
        seen["connects"].append(str(arguments[1:]))
    if event == "open" and str(arguments[0]).endswith("turnkeeper.toml"):
        seen["opens"].append(str(arguments[0]))

sys.addaudithook(watch)
%s
current = sys.modules.get("celery._state")
print(json.dumps(seen | {
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "threads": threading.active_count(),
    "current_app": current is not None and (current.default_app or current._tls.current_app) is not None,
}))
"""


def after(statement: str, **environment: str) -> dict[str, Any]:
    """Run *statement* in a fresh interpreter and return what it left behind."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", LOOK % statement],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"} | environment,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize(
    "module", ["celery", "kombu", "redis", "sqlalchemy", "psycopg", "httpx", "aiohttp", "rich", "opentelemetry"]
)
def test_a_producers_import_is_light(light: dict[str, Any], module: str) -> None:
    assert module not in light["modules"]


@pytest.fixture(scope="module")
def light() -> dict[str, Any]:
    return after("import turnkeeper; turnkeeper.TurnRequest(text='Hello'); turnkeeper.Transcript()")


def test_the_clients_load_on_first_use_and_make_no_celery_app_current() -> None:
    seen = after(
        "import turnkeeper\nkeeper = turnkeeper.Turnkeeper()\nkeeper._celery\nturnkeeper.AsyncTurnkeeper\n"
    )

    assert {"celery", "sqlalchemy"} <= set(seen["modules"])
    assert not seen["current_app"]
    assert seen["connects"] == []
    assert "httpx" not in seen["modules"]


def test_a_producers_own_celery_app_stays_current() -> None:
    after(
        "import celery\n"
        "mine = celery.Celery('mine')\n"
        "import turnkeeper\n"
        "turnkeeper.Turnkeeper()._celery\n"
        "import turnkeeper_worker.tasks\n"
        "assert celery.current_app.main == 'mine'\n"
    )


@pytest.mark.parametrize("module", ["turnkeeper_worker.app", "turnkeeper_worker.tasks"])
def test_the_workers_app_reads_nothing_and_opens_nothing_at_import(module: str, tmp_path: Path) -> None:
    config = tmp_path / "turnkeeper.toml"
    config.write_text("this is no TOML")

    seen = after(
        f"import {module}",
        TURNKEEPER_CONFIG=str(config),
        TURNKEEPER_DATABASE_URL="none",
        TURNKEEPER_CONCURRENCY="x",
    )

    assert (seen["connects"], seen["opens"], seen["threads"]) == ([], [], 1)
    assert not seen["current_app"]
