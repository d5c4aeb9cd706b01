"""The command line, `turnkeeper`: people read tables and countdowns, programs get `--json`.

Exit codes: 0 done, 1 something is wrong with the installation, 2 the call or its surroundings must be changed
(one line on standard error says how), 3 the turn failed, 4 the turn was cancelled.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import typer

from turnkeeper.exceptions import TurnkeeperError
from turnkeeper.settings import ENV_PREFIX
from turnkeeper_worker.cli import cooldowns, limiting, operate, switching, turns

#: Typer brings a click of its own, and exports only the leaves of its tree of exceptions.
UsageError = cast("type[Exception]", typer.BadParameter.__base__)

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

DEV_ENV = Path(".turnkeeper/dev.env")
"""What `turnkeeper dev` writes in its folder, so that the other commands find its servers."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command; return its exit code.  What the user can mend is one line, never a traceback."""
    # What the library logs for programs, the commands tell people in their own words.
    logging.getLogger("turnkeeper").addHandler(logging.NullHandler())
    try:
        _adopt_dev_stack()
        return _app()(args=list(argv) or ["--help"], standalone_mode=False) or 0
    except typer.Exit as leave:
        return leave.exit_code
    except UsageError as error:
        return _complain(f"{_wording(error)}; see `turnkeeper --help`")
    except TurnkeeperError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left, as `head` does; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _app() -> typer.Typer:
    app = typer.Typer(
        help=__doc__,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (*turns.COMMANDS, *operate.COMMANDS, limiting.usage):
        app.command()(command)
    app.add_typer(switching.commands(), name="providers")
    app.add_typer(limiting.commands(), name="limits")
    app.add_typer(cooldowns.commands(), name="cooldowns")
    return app


def _wording(error: Exception) -> str:
    """Take the sentence that names the parameter, without its full stop."""
    wording = getattr(error, "format_message", error.__str__)
    return str(wording()).rstrip(".")


def _complain(line: str) -> int:
    print(f"turnkeeper: {' '.join(line.split())}", file=sys.stderr)  # noqa: T201 - this is the command line
    return EXIT_USAGE


def _adopt_dev_stack() -> None:
    """Use the development stack that runs in this folder, where nothing else is said."""
    if any(name.startswith(ENV_PREFIX) for name in os.environ) or not DEV_ENV.is_file():
        return
    from turnkeeper_ops.dev import environment_of

    os.environ.update(environment_of(Path.cwd()))
