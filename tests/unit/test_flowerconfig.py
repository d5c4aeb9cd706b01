"""What Flower is told: no commands, no prompts."""

from types import FunctionType, SimpleNamespace

import pytest
from flower.options import default_options  # type: ignore[import-untyped]  # Flower is untyped
from flower.views.tasks import TASK_COLUMNS  # type: ignore[import-untyped]  # the same

from turnkeeper_ops import flowerconfig

SETTINGS = {name: value for name, value in vars(flowerconfig).items() if name in default_options}


def test_every_setting_is_an_option_that_flower_knows() -> None:
    ours = {name for name in vars(flowerconfig) if not name.startswith("_")} - {"Any"}

    assert set(SETTINGS) == ours


def test_flower_takes_no_commands() -> None:
    assert SETTINGS["read_only"] is True


def test_every_column_exists() -> None:
    assert set(flowerconfig.tasks_columns.split(",")) <= set(TASK_COLUMNS)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("turnkeeper.run_turn", "turn 7f3", id="a turn shows its label"),
        pytest.param("turnkeeper.submit_turn", "", id="a request holds a prompt and shows nothing"),
        pytest.param(None, "", id="an unknown task shows nothing"),
    ],
)
def test_arguments_are_shown_only_where_they_are_a_label(name: str | None, shown: str) -> None:
    task = SimpleNamespace(name=name, args="turn 7f3", kwargs="{'text': 'secret'}", result=None, exception=None)

    formatted = flowerconfig.format_task(task)

    assert isinstance(flowerconfig.format_task, FunctionType)
    assert (formatted.args, formatted.kwargs) == (shown, "")


@pytest.mark.parametrize(
    ("result", "exception", "shown"),
    [("in=3 out=4", None, "in=3 out=4"), (None, "auth: No.", "auth: No."), (None, None, None)],
)
def test_what_a_task_failed_of_stands_where_its_result_would(
    result: str | None, exception: str | None, shown: str | None
) -> None:
    task = SimpleNamespace(name="turnkeeper.run_turn", args="", kwargs="", result=result, exception=exception)

    assert flowerconfig.format_task(task).result == shown
