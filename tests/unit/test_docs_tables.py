"""Generated tables in the docs."""

from pathlib import Path

import pytest

from turnkeeper.errors import COPY, ErrorKind
from turnkeeper_ops import docs_tables
from turnkeeper_ops.docs_tables import MarkersMissing, Table, kinds_table, replace_block, rewrite, stale_tables
from turnkeeper_worker.decide import FALLS_BACK

PAGE = "before\n<!-- t:begin -->\nold\n<!-- t:end -->\nafter\n"


def test_the_docs_say_what_the_code_does() -> None:
    assert [table.name for table in stale_tables()] == [], "run: python -m turnkeeper_ops.docs_tables"


def test_the_table_of_kinds_has_a_row_for_each() -> None:
    rows = kinds_table().splitlines()

    assert len(rows) == len(ErrorKind) + 2
    for kind, row in zip(ErrorKind, rows[2:], strict=True):
        falls_back = FALLS_BACK[kind].value
        assert row.startswith(f"| `{kind}` | {COPY[kind].retry} | {falls_back} | {COPY[kind].title} |")


def test_only_what_stands_between_the_comments_is_replaced() -> None:
    assert replace_block(PAGE, "t", "new") == PAGE.replace("old", "new")


@pytest.mark.parametrize(
    "page", ["", "<!-- t:begin -->", "<!-- t:end --><!-- t:begin -->", "<!-- u:begin --><!-- u:end -->"]
)
def test_a_page_without_the_comments_is_an_error_that_says_so(page: str) -> None:
    with pytest.raises(MarkersMissing, match="no <!-- t:begin -->"):
        replace_block(page, "t", "new")


def test_a_bar_in_a_cell_is_escaped() -> None:
    assert docs_tables.markdown_table(("a",), [("1|2",)]).splitlines()[2] == "| 1\\|2 |"


def test_a_stale_table_is_found_and_rewritten(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE, "utf-8")
    table = Table(name="t", page="page.md", render=lambda: "new")

    assert stale_tables([table], root=tmp_path) == [table]
    rewrite(table, root=tmp_path)

    assert stale_tables([table], root=tmp_path) == []
    assert (tmp_path / "page.md").read_text("utf-8") == PAGE.replace("old", "new")


def test_a_check_names_the_stale_table_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(PAGE, "utf-8")
    table = Table(name="t", page=str(tmp_path / "page.md"), render=lambda: "new")
    monkeypatch.setattr(docs_tables, "stale_tables", lambda: [table])

    assert docs_tables.main(["--check"]) == 1
    assert "stale: t in" in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text("utf-8") == PAGE

    assert docs_tables.main([]) == 0
    assert (tmp_path / "page.md").read_text("utf-8") != PAGE


def test_a_check_of_current_docs_passes() -> None:
    assert docs_tables.main(["--check"]) == 0
