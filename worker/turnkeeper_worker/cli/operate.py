"""The commands of operators: dev, migrate, worker, simulate, classify, check, prune.

Each loads what it needs when it is called: `turnkeeper show` should not wait for Celery and an HTTP client.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from turnkeeper_worker.config import Settings

EXIT_WRONG = 1

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def dev(
    *,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Worker processes.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=5000, help="Turns in flight per worker.")] = 200,
    simulator: Annotated[bool, typer.Option(help="Run a simulated provider as well.")] = True,
    as_json: AsJson = False,
) -> int:
    """Run the whole stack in this folder, PostgreSQL and Redis included, until Ctrl-C."""
    from turnkeeper_ops.dev import run_dev

    return run_dev(Path.cwd(), workers=workers, concurrency=concurrency, simulator=simulator, as_json=as_json)


def migrate() -> int:
    """Create or update the tables; safe to run from several hosts at once."""
    import turnkeeper_migrations
    from turnkeeper.database import explaining_database_errors

    settings = Settings.load()
    with explaining_database_errors(settings.database):
        before = turnkeeper_migrations.upgrade(settings.database)
    head = turnkeeper_migrations.head_revision()
    typer.echo(f"the schema is at {head}" + ("" if before == head else f", it was at {before or 'nothing'}"))
    return 0


def worker(
    *,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=5000, help="Turns in flight; one process per core is best.")
    ] = None,
) -> int:
    """Run turns until SIGTERM; then let them finish for a while, and hand the rest back."""
    from turnkeeper_worker.app import app
    from turnkeeper_worker.engine import check_schema

    app.settings = Settings.load(concurrency=concurrency)
    check_schema(app.settings)
    app.worker_main(
        [
            "worker",
            f"--hostname=turnkeeper-{os.getpid()}@%h",
            f"--loglevel={app.settings.log_level}",
            "--without-gossip",
            "--without-mingle",
        ]
    )
    return app.exit_status


def simulate(
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    api_key: Annotated[str, typer.Option(help="The only key that is accepted.")] = "sk-simulator",
) -> int:
    """Run the simulated provider alone; `sim:NAME` in a message chooses what happens to it."""
    from turnkeeper_ops.simulator import CannotListen, run
    from turnkeeper_ops.simulator import Settings as SimulatorSettings

    try:
        run(SimulatorSettings(host=host, port=port, api_key=api_key))
    except CannotListen as error:
        raise typer.BadParameter(str(error)) from None
    return 0


def classify(
    *,
    explain: Annotated[bool, typer.Option(help="Also name the rule that decided, and what it saw.")] = False,
) -> int:
    """Classify failures: JSON lines in, JSON lines out; exit 1 when a line was broken."""
    from turnkeeper_worker.cli import classify as classifying

    return classifying.run(sys.stdin, sys.stdout, explain=explain)


def check(*, as_json: AsJson = False) -> int:
    """Check that everything is where the settings say, and answers; exit 1 when something does not."""
    from turnkeeper_worker.cli.checkup import examine

    findings = examine(Settings.load())
    if as_json:
        typer.echo(json.dumps([{"what": one.what, "ok": one.ok, "says": one.says} for one in findings]))
    else:
        for one in findings:
            typer.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.what}: {one.says}")
    return 0 if all(one.ok for one in findings) else EXIT_WRONG


def prune(
    *,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Such as 30d or 12h; without it, `retention_days` of the settings."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Delete old attempts, tool runs and rejections, and rows of workers that are gone; chats stay as they are."""
    from turnkeeper_worker.cli import tidying

    settings = Settings.load()
    age = tidying.retention_of(settings) if older_than is None else tidying.read_age(older_than)
    deleted = tidying.run(settings, age, Console(stderr=True, highlight=False))
    typer.echo(json.dumps(deleted) if as_json else f"deleted {tidying.describe(deleted)}")
    return 0


COMMANDS = (dev, migrate, worker, simulate, classify, check, prune)
