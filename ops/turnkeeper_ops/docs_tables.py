"""Tables in the docs that are generated from code, so that they cannot disagree with it.

`python -m turnkeeper_ops.docs_tables` rewrites them; `--check` only says whether they are current.
A table stands between `<!-- name:begin -->` and `<!-- name:end -->`; what is around it is written by hand.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from turnkeeper.errors import COPY, ChatError, ErrorKind, retry_copy, terminal_copy
from turnkeeper.events import COMMON_FIELDS, EVENT_TYPES
from turnkeeper.settings import ENV_PREFIX
from turnkeeper_worker.config import ProviderConfig, RetryPolicy, Settings
from turnkeeper_worker.decide import FALLS_BACK
from turnkeeper_worker.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: the docs are not shipped with the wheel."""


class MarkersMissing(Exception):
    """A page lacks the comments between which its table belongs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no <!-- {self.name}:begin --> … <!-- {self.name}:end -->; add both comments to the page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One generated table and where it belongs."""

    name: str
    """The word in its two comments."""
    page: str
    """Path of the page, from the root of the checkout."""
    render: Callable[[], str]


def kinds_table() -> str:
    """Render the kinds of errors with their copy, in the order of `ErrorKind`."""
    return markdown_table(
        ("kind", "retry", "falls back", "title", "retry copy", "terminal copy"),
        (
            (
                f"`{kind}`",
                COPY[kind].retry,
                FALLS_BACK[kind].value,
                COPY[kind].title,
                _retry_copy(kind),
                terminal_copy(kind),
            )
            for kind in ErrorKind
        ),
    )


def events_table() -> str:
    """Render the live events with the fields of their own."""
    return markdown_table(("event", "meaning", "fields"), map(_event_row, EVENT_TYPES))


def settings_table() -> str:
    """Render the settings that are one value each."""
    return _fields_table(Settings, ENV_PREFIX, leave_out={"retry", "providers"})


def providers_table() -> str:
    """Render the settings of one provider."""
    return _fields_table(ProviderConfig, f"{ENV_PREFIX}PROVIDERS__NAME__", leave_out={"retry"})


def metrics_table() -> str:
    """Render the metrics of a worker."""
    rows = (
        (f"`{row.name}`", row.kind, ", ".join(f"`{label}`" for label in row.labels), row.meaning)
        for row in Metrics({}).table
    )
    return markdown_table(("metric", "kind", "labels", "meaning"), rows)


def retry_table() -> str:
    """Render the settings of the retry policy."""
    return _fields_table(RetryPolicy, f"{ENV_PREFIX}RETRY__")


TABLES = (
    Table(name="kinds", page="docs/kinds.md", render=kinds_table),
    Table(name="events", page="docs/how-it-works.md", render=events_table),
    Table(name="settings", page="docs/settings.md", render=settings_table),
    Table(name="providers", page="docs/settings.md", render=providers_table),
    Table(name="metrics", page="docs/metrics.md", render=metrics_table),
    Table(name="retry", page="docs/settings.md", render=retry_table),
)


def markdown_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Render a table in Markdown.

    >>> print(markdown_table(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]
    return "\n".join(lines)


def replace_block(page: str, name: str, block: str) -> str:
    """Return *page* with *block* between the comments of *name*.

    Raises:
        MarkersMissing: The page has no such comments.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise MarkersMissing(name)
    return f"{before}{begin}\n{block}\n{end}{after}"


def stale_tables(tables: Iterable[Table] = TABLES, *, root: Path = ROOT) -> list[Table]:
    """Return the tables whose page says something else than the code."""
    return [table for table in tables if (root / table.page).read_text("utf-8") != _fresh(table, root)]


def rewrite(table: Table, *, root: Path = ROOT) -> None:
    """Write *table* into its page."""
    (root / table.page).write_text(_fresh(table, root), "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the stale tables, or with `--check` name them; return 1 when a check found one."""
    parser = argparse.ArgumentParser(prog="python -m turnkeeper_ops.docs_tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a table is stale")
    check = parser.parse_args(arguments).check
    stale = stale_tables()
    for table in stale:
        sys.stdout.write(f"{'stale' if check else 'rewrote'}: {table.name} in {table.page}\n")
        if not check:
            rewrite(table)
    return int(check and bool(stale))


def _fresh(table: Table, root: Path) -> str:
    return replace_block((root / table.page).read_text("utf-8"), table.name, table.render())


def _event_row(event: type[BaseModel]) -> tuple[str, ...]:
    own = [f"`{name}`" for name in event.model_fields if name not in COMMON_FIELDS]
    return f"`{event.model_fields['type'].default}`", _first_line(event.__doc__), ", ".join(own)


def _fields_table(model: type[BaseModel], prefix: str, *, leave_out: Iterable[str] = ()) -> str:
    fields = ((name, field) for name, field in model.model_fields.items() if name not in leave_out)
    rows = (
        (f"`{name}`", f"`{prefix}{name.upper()}`", _default(field), _first_line(field.description))
        for name, field in fields
    )
    return markdown_table(("setting", "variable", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    shown = default.get_secret_value() if isinstance(default, SecretStr) else default
    return "" if shown is None or shown in ({}, ()) else f"`{shown}`"


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _retry_copy(kind: ErrorKind) -> str:
    return retry_copy(ChatError(kind=kind, message=""))


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
