"""`python -m turnkeeper_ops.simulator`: the arguments, and one line for what is wrong with them."""

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

from turnkeeper_ops.simulator.script_file import ScriptFileInvalid, read_script_file
from turnkeeper_ops.simulator.server import CannotListen, run
from turnkeeper_ops.simulator.state import KEY, Settings

EXIT_BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}\n")


def main() -> int:
    """Serve until told to stop; return the exit code."""
    arguments = _parser().parse_args()
    try:
        scripts = read_script_file(arguments.script_file) if arguments.script_file else {}
        key, *more_keys = arguments.api_key or [KEY]
        run(
            Settings(
                host=arguments.host,
                port=arguments.port,
                api_key=key,
                more_api_keys=tuple(more_keys),
                chunk_delay_ms=arguments.chunk_delay_ms,
                context_tokens=arguments.context_tokens,
                scripts=scripts,
            )
        )
    except (CannotListen, ScriptFileInvalid) as error:
        sys.stderr.write(f"{_parser().prog}: {error}\n")
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = _Parser(prog="turnkeeper simulate", description="A fake model provider for tests and demos.")
    add = parser.add_argument
    add("--host", default=usual.host)
    add("--port", type=int, default=usual.port, help="0: any free port")
    add("--api-key", action="append", help=f"a key that is accepted ({KEY}); again: one more, another account")
    add("--chunk-delay-ms", type=_not_negative, default=usual.chunk_delay_ms, help="wait between chunks")
    add("--context-tokens", type=int, default=usual.context_tokens, help="a longer prompt is refused")
    add("--script-file", type=Path, help='JSON or TOML: {"NAME": {"steps": [...]}}')
    return parser


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be zero or more, not {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
