"""Reads a file of scripts: JSON, or TOML where the name ends in `.toml`; names at the top, scripts below."""

import json
import tomllib
from pathlib import Path

from turnkeeper_ops.simulator.control import parse_script, sentence
from turnkeeper_ops.simulator.scripts import Script


class ScriptFileInvalid(Exception):
    """A file of scripts cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_script_file(path: Path) -> dict[str, Script]:
    """Read the scripts in *path*.

    Raises:
        ScriptFileInvalid: The file cannot be read, or a script in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        given = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ScriptFileInvalid(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise ScriptFileInvalid(path, str(error)) from error
    if not isinstance(given, dict):
        raise ScriptFileInvalid(path, "names of scripts are expected at the top")
    return {name: _parse(path, name, script) for name, script in given.items()}


def _parse(path: Path, name: str, script: object) -> Script:
    try:
        return parse_script(name, script)
    except ValueError as error:
        raise ScriptFileInvalid(path, f"script '{name}' is not valid: {sentence(error)}") from error
