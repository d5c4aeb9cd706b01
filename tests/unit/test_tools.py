"""Tools: whatever one does, the model gets a result, and the worker goes on; and how a worker finds them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from structlog.testing import capture_logs

from turnkeeper.exceptions import InvalidSettings
from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.requests import MAX_TEXT_BYTES
from turnkeeper.tools import MAX_TIMEOUT_SECONDS, Tool, ToolContext, ToolFailed
from turnkeeper_worker.tools import Toolbox, load_toolbox

CONTEXT = ToolContext(turn_id=UUID(int=1), chat_id=UUID(int=2), owner="ada", step=3, call_id="call_1")
PATIENCE_SECONDS = 5.0


class City(BaseModel):
    city: str = ""


class Exact(BaseModel):
    city: str
    days: int = Field(ge=1)


class Unlucky(BaseModel):
    """Its validator has a bug."""

    city: str

    @field_validator("city")
    @classmethod
    def _find(cls, city: str) -> str:
        return {"Oslo": city}[city]


@dataclass
class Weather:
    degrees: int


def tool(run: Callable[..., Any], **fields: Any) -> Tool[Any]:
    usual: dict[str, Any] = {"name": "look", "description": "Looks.", "arguments": City, "run": run}
    return Tool(**(usual | fields))


def start(run: Callable[..., Any], said: str = "{}", **fields: Any) -> Coroutine[Any, Any, ToolResult]:
    """Return the run of a tool that the model called with what it *said*, to be awaited."""
    call = ToolCall(call_id="call_1", name="look", arguments=said)
    return Toolbox({"look": tool(run, **fields)}).run(call, CONTEXT)


def told(output: str) -> ToolResult:
    return ToolResult(call_id="call_1", output=output)


def failed(output: str) -> ToolResult:
    return ToolResult(call_id="call_1", output=output, is_error=True)


def raising(error: BaseException) -> Callable[..., Any]:
    def run(_: BaseModel, __: ToolContext) -> None:
        raise error

    return run


def plain(run: Callable[..., Any]) -> Callable[..., Any]:
    return run


def coroutine(run: Callable[..., Any]) -> Callable[..., Any]:
    async def run_async(arguments: BaseModel, context: ToolContext) -> Any:
        return run(arguments, context)

    return run_async


every_kind = pytest.mark.parametrize("kind", [plain, coroutine])


def a_loop() -> list[Any]:
    """Return a list that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


def wait_for_threads() -> None:
    """Wait until no blocking tool runs any more."""
    for thread in threading.enumerate():
        if thread.name == "turnkeeper-tool":
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


class TestArguments:
    @every_kind
    async def test_a_tool_gets_what_the_model_wrote_and_for_whom_it_runs(self, kind: Callable[..., Any]) -> None:
        seen: list[Any] = []

        def look(*given: Any) -> None:
            seen.extend(given)

        await start(kind(look), '{"city": "Oslo"}')

        assert seen == [City(city="Oslo"), CONTEXT]

    async def test_no_arguments_at_all_are_an_empty_object(self) -> None:
        assert await start(lambda where, _: repr(where.city), "") == told("''")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            pytest.param("{}", "city: Field required; days: Field required", id="missing fields"),
            pytest.param(
                '{"city": "Oslo", "days": 0}', "days: Input should be greater than or equal to 1", id="a bound"
            ),
            pytest.param('{"city": "Os', "Invalid JSON: EOF while parsing a string", id="half of the arguments"),
            pytest.param("Oslo", "Invalid JSON: expected value", id="words"),
            pytest.param("[]", "Input should be an object", id="a list"),
            pytest.param("[" * 5000, "Invalid JSON: recursion limit exceeded", id="depths that no parser follows"),
            pytest.param('"\ud83d"', "Input should be a valid string", id="half of a surrogate pair"),
        ],
    )
    async def test_wrong_arguments_are_explained_in_one_line(self, arguments: str, said: str) -> None:
        result = await start(raising(AssertionError("it ran")), arguments, arguments=Exact)

        assert result.is_error
        assert result.output.startswith(f"The arguments are wrong: {said}")
        assert len(result.output.splitlines()) == 1
        assert "Traceback" not in result.output

    async def test_a_validator_with_a_bug_is_a_fault_of_the_tool(self) -> None:
        result = await start(lambda *_: None, '{"city": "secret"}', arguments=Unlucky)

        assert result == failed("The tool failed with KeyError.")

    async def test_a_name_that_the_model_made_up_is_told(self) -> None:
        call = ToolCall(call_id="call_1", name="whether", arguments="{}")

        assert await Toolbox().run(call, CONTEXT) == failed("There is no tool whether.")


class TestFailures:
    @every_kind
    async def test_what_a_tool_has_to_say_is_the_result(self, kind: Callable[..., Any]) -> None:
        refuse = kind(raising(ToolFailed("There is no\0 such order.")))

        assert await start(refuse) == failed("There is no\ufffd such order.")

    async def test_what_a_tool_has_to_say_has_the_limit_of_every_result(self) -> None:
        result = await start(raising(ToolFailed("a" * (MAX_TEXT_BYTES + 1))))

        assert result == failed("The tool returned 10,485,761 bytes, and 10,485,760 are allowed.")

    @every_kind
    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(RuntimeError("the secret is 1234"), id="an exception"),
            pytest.param(StopIteration("the secret is 1234"), id="one that no future can hold"),
            pytest.param(SystemExit("the secret is 1234"), id="one that ends processes"),
            pytest.param(KeyboardInterrupt("the secret is 1234"), id="one that ends loops"),
            pytest.param(BaseException("the secret is 1234"), id="the most general one"),
            pytest.param(ExceptionGroup("the secret is 1234", [ValueError("1234")]), id="a group"),
        ],
    )
    async def test_of_an_exception_nothing_but_its_class_is_told_and_logged(
        self, error: BaseException, kind: Callable[..., Any]
    ) -> None:
        with capture_logs() as logs:
            result = await start(kind(raising(error)))

        assert result.is_error
        assert result.output.startswith("The tool failed with ")
        assert "1234" not in result.output
        (entry,) = logs
        assert (entry["event"], entry["tool"], entry["turn_id"]) == ("tool.crashed", "look", str(UUID(int=1)))
        assert "1234" not in repr(entry)

    async def test_the_class_of_an_exception_is_told(self) -> None:
        assert await start(raising(LookupError("1234"))) == failed("The tool failed with LookupError.")

    @every_kind
    async def test_a_time_that_ran_out_inside_of_the_tool_is_not_ours(self, kind: Callable[..., Any]) -> None:
        result = await start(kind(raising(TimeoutError("1234"))))

        assert result == failed("The tool failed with TimeoutError.")


class TestTime:
    async def test_an_async_tool_that_takes_too_long_is_stopped(self) -> None:
        stopped = asyncio.Event()

        async def look(_: City, __: ToolContext) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        result = await start(look, timeout_seconds=0.01)

        assert result == failed("The tool gave no result within 0.01 s.")
        await asyncio.wait_for(stopped.wait(), PATIENCE_SECONDS)

    async def test_a_blocking_tool_that_takes_too_long_is_left_behind_and_its_end_is_nobodys_matter(self) -> None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        release = threading.Event()

        def look(_: City, __: ToolContext) -> None:
            release.wait(PATIENCE_SECONDS)
            raise RuntimeError("too late")

        result = await start(look, timeout_seconds=0.01)
        release.set()
        await asyncio.to_thread(wait_for_threads)
        await asyncio.sleep(0)

        assert result == failed("The tool gave no result within 0.01 s.")
        assert complaints == []

    def test_a_blocking_tool_that_outlives_the_loop_ends_quietly(self) -> None:
        release = threading.Event()

        result = asyncio.run(start(lambda *_: release.wait(PATIENCE_SECONDS), timeout_seconds=0.01))
        release.set()
        wait_for_threads()

        assert result.is_error

    async def test_a_blocking_tool_holds_up_nobody(self) -> None:
        release = threading.Event()
        asyncio.get_running_loop().call_later(0.01, release.set)

        result = await start(lambda *_: release.wait(PATIENCE_SECONDS))

        assert result == told("true")

    async def test_blocking_tools_run_side_by_side_however_many(self) -> None:
        barrier = threading.Barrier(50)

        results = await asyncio.gather(
            *(start(lambda *_: barrier.wait(PATIENCE_SECONDS) >= 0) for _ in range(barrier.parties))
        )

        assert results == [told("true")] * 50


class TestCancel:
    async def test_a_cancel_of_ours_goes_through_and_stops_an_async_tool(self) -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def look(_: City, __: ToolContext) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        running = asyncio.create_task(start(look))
        await started.wait()
        running.cancel()

        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended.is_set()

    async def test_a_cancel_of_ours_does_not_wait_for_a_blocking_tool(self) -> None:
        started, release = threading.Event(), threading.Event()

        def look(_: City, __: ToolContext) -> None:
            started.set()
            release.wait(PATIENCE_SECONDS)

        running = asyncio.create_task(start(look))
        assert await asyncio.to_thread(started.wait, PATIENCE_SECONDS)
        running.cancel()

        with pytest.raises(asyncio.CancelledError):
            await running
        assert not release.is_set()
        release.set()
        await asyncio.to_thread(wait_for_threads)

    @every_kind
    async def test_a_cancel_that_a_tool_raises_is_a_result(self, kind: Callable[..., Any]) -> None:
        result = await start(kind(raising(asyncio.CancelledError())))

        assert result == failed("The tool was cancelled.")

    async def test_a_tool_that_awaits_something_cancelled_gives_a_result(self) -> None:
        async def look(_: City, __: ToolContext) -> None:
            waiting = asyncio.create_task(asyncio.Event().wait())
            waiting.cancel()
            await waiting

        assert await start(look) == failed("The tool was cancelled.")

    async def test_a_tool_that_cancels_the_task_it_runs_in_gives_a_result(self) -> None:
        async def look(_: City, __: ToolContext) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()

        ended = await asyncio.gather(asyncio.create_task(start(look)), return_exceptions=True)

        assert ended == [failed("The tool was cancelled.")]


class TestOutput:
    @every_kind
    @pytest.mark.parametrize(
        ("value", "output"),
        [
            pytest.param("It is warm.", "It is warm.", id="text as it is"),
            pytest.param("", "", id="no words"),
            pytest.param(None, "", id="nothing"),
            pytest.param({"degrees": 21}, '{"degrees":21}', id="a dictionary"),
            pytest.param([1, "a", None, True], '[1,"a",null,true]', id="a list"),
            pytest.param(21, "21", id="a number"),
            pytest.param(City(city="Oslo"), '{"city":"Oslo"}', id="a model"),
            pytest.param(Weather(21), '{"degrees":21}', id="a dataclass"),
            pytest.param(b"warm", '"warm"', id="bytes that are text"),
            pytest.param(UUID(int=1), f'"{UUID(int=1)}"', id="an id"),
            pytest.param("a\0b", "a\ufffdb", id="a NUL"),
            pytest.param("a\ud83d", "a?", id="half of a surrogate pair"),
            pytest.param("größer", "größer", id="letters beyond ASCII"),
        ],
    )
    async def test_the_model_is_told_what_a_tool_returned(
        self, value: object, output: str, kind: Callable[..., Any]
    ) -> None:
        assert await start(kind(lambda *_: value)) == told(output)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), {"degrees": float("nan")}])
    async def test_a_number_that_is_none_is_null(self, value: object) -> None:
        result = await start(lambda *_: value)

        assert result.output in {"null", '{"degrees":null}'}

    @pytest.mark.parametrize(
        ("value", "type_name"),
        [
            pytest.param(object(), "object", id="any object"),
            pytest.param(b"\xff", "bytes", id="bytes that are no text"),
            pytest.param({"a": object()}, "dict", id="an object inside"),
            pytest.param({"a": "\ud83d"}, "dict", id="half of a surrogate pair inside"),
            pytest.param(a_loop(), "list", id="a list that holds itself"),
        ],
    )
    async def test_what_is_no_json_is_told_by_its_type(self, value: object, type_name: str) -> None:
        assert await start(lambda *_: value) == failed(f"The tool returned {type_name}, which is no JSON.")

    async def test_ten_mebibytes_are_told(self) -> None:
        result = await start(lambda *_: "a" * MAX_TEXT_BYTES)

        assert (result.is_error, len(result.output)) == (False, MAX_TEXT_BYTES)

    @pytest.mark.parametrize(
        ("value", "size"),
        [
            pytest.param("a" * (MAX_TEXT_BYTES + 1), "10,485,761", id="text"),
            pytest.param("é" * (MAX_TEXT_BYTES // 2 + 1), "10,485,762", id="bytes and not characters"),
            pytest.param(["a" * MAX_TEXT_BYTES], "10,485,764", id="JSON"),
        ],
    )
    async def test_more_is_refused_with_its_size(self, value: object, size: str) -> None:
        result = await start(lambda *_: value)

        assert result == failed(f"The tool returned {size} bytes, and 10,485,760 are allowed.")

    @given(st.recursive(st.none() | st.floats() | st.text(st.characters(exclude_categories=[])), st.lists))
    def test_whatever_is_returned_the_result_can_be_stored(self, value: object) -> None:
        async def look(_: City, __: ToolContext) -> object:
            return value

        result = asyncio.run(start(look))

        assert "\0" not in result.output
        assert result.output.encode().decode() == result.output


class TestToolbox:
    def test_a_tool_is_described_by_its_name_its_words_and_the_schema_of_its_arguments(self) -> None:
        (spec,) = Toolbox({"look": tool(print, arguments=Exact)}).only(["look", "other"]).specs()

        assert (spec.name, spec.description) == ("look", "Looks.")
        assert spec.parameters["type"] == "object"
        assert spec.parameters["required"] == ["city", "days"]

    def test_what_it_has_no_tool_for_is_missing(self) -> None:
        toolbox = Toolbox({"look": tool(print)})

        assert toolbox.missing(["look"]) == ()
        assert toolbox.missing(["pay", "look", "teleport"]) == ("pay", "teleport")

    def test_a_run_may_be_repeated_where_the_tool_says_so_or_does_not_exist(self) -> None:
        toolbox = Toolbox({"look": tool(print, idempotent=True), "pay": tool(print, name="pay")})

        assert [toolbox.is_idempotent(name) for name in ("look", "pay", "whether")] == [True, False, True]


class TestTool:
    @pytest.mark.parametrize("name", ["look", "look_up-2", "a", "x" * 64])
    def test_a_name_that_every_provider_takes_is_taken(self, name: str) -> None:
        assert tool(print, name=name).name == name

    @pytest.mark.parametrize("name", ["", "look up", "look.up", "größe", "look\n", "x" * 65])
    def test_another_name_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="is no name of a tool; use 1 to 64 letters, digits, _ and -"):
            tool(print, name=name)

    @pytest.mark.parametrize("seconds", [0.001, 60, MAX_TIMEOUT_SECONDS])
    def test_it_may_take_up_to_an_hour(self, seconds: float) -> None:
        assert tool(print, timeout_seconds=seconds).timeout_seconds == seconds

    @pytest.mark.parametrize("seconds", [0, -1, 3600.1, float("inf"), float("nan")])
    def test_another_time_is_refused(self, seconds: float) -> None:
        with pytest.raises(ValueError, match="timeout_seconds of look must be above 0 and at most 3600"):
            tool(print, timeout_seconds=seconds)

    def test_a_run_has_a_key_that_its_repetitions_have_and_no_other_run(self) -> None:
        assert CONTEXT.key == f"{UUID(int=1)}/3/call_1"


HEADER = """
from pydantic import BaseModel
from turnkeeper.tools import Tool

class Nothing(BaseModel):
    pass

def make(name):
    return Tool(name=name, description="", arguments=Nothing, run=print)
"""


class Site:
    """A folder that packages are installed into, the way that pip would do it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, module_text: str, **entries: str) -> None:
        """Install a package with one module; *entries* are the names of tools, and of what they are in it."""
        # No other test has imported a module of this name.
        module = f"{package}_{uuid4().hex}"
        (self.folder / f"{module}.py").write_text(HEADER + module_text, encoding="utf-8")
        described = self.folder / f"{package}-1.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{found}" for name, found in entries.items()]
        (described / "entry_points.txt").write_text("\n".join(["[turnkeeper.tools]", *lines, ""]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder on the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return Site(folder)


def refusal() -> str:
    """Return why the tools that are installed cannot be loaded: one line."""
    with pytest.raises(InvalidSettings) as caught:
        load_toolbox()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


class TestLoading:
    def test_a_worker_without_tools_has_an_empty_box(self) -> None:
        assert load_toolbox() == Toolbox({})

    def test_every_tool_of_every_package_is_found_under_the_name_that_it_has(self, site: Site) -> None:
        site.install("toolsmith", "LOOK, PAY = make('look'), make('pay')", first="LOOK", second="PAY")
        site.install("toolbench", "SAW = make('saw')", saw="SAW")

        assert set(load_toolbox().tools) == {"look", "pay", "saw"}

    def test_a_package_that_is_on_the_path_twice_is_one(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        site.install("toolsmith", "LOOK = make('look')", look="LOOK")
        monkeypatch.syspath_prepend(site.folder)

        assert set(load_toolbox().tools) == {"look"}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            pytest.param("import nothing_of_the_kind", "ModuleNotFoundError", id="an import of what is not there"),
            pytest.param("raise RuntimeError('one\\ntwo')", "RuntimeError: one", id="an exception of two lines"),
            pytest.param("def:", "SyntaxError", id="no Python"),
            pytest.param("OTHER = 1", "AttributeError", id="a name that is not in the module"),
            pytest.param("LOOK = make('look up')", "'look up' is no name of a tool", id="a name that none takes"),
            pytest.param("raise SystemExit(3)", "SystemExit", id="the end of the process"),
        ],
    )
    def test_a_tool_that_cannot_be_imported_is_told_with_its_package(
        self, site: Site, text: str, reason: str
    ) -> None:
        site.install("toolsmith", text, look="LOOK")

        said = refusal()

        assert said.startswith("the tool look of toolsmith cannot be loaded: ")
        assert reason in said

    def test_what_is_no_tool_is_told_with_its_package(self, site: Site) -> None:
        site.install("toolsmith", "LOOK = print", look="LOOK")

        said = refusal()

        assert said.startswith("toolsmith_")
        assert said.endswith(":LOOK, the tool look of toolsmith, is no turnkeeper.tools.Tool")

    def test_a_tool_whose_arguments_have_no_schema_is_told_with_its_package(self, site: Site) -> None:
        site.install(
            "toolsmith",
            """
from collections.abc import Callable

class Strange(BaseModel):
    what: Callable[[], None]

LOOK = Tool(name="look", description="", arguments=Strange, run=print)
""",
            look="LOOK",
        )

        assert refusal().startswith("the tool look of toolsmith cannot be loaded: ")

    def test_two_tools_of_the_same_name_are_told_with_their_packages(self, site: Site) -> None:
        site.install("toolsmith", "LOOK = make('look')", look="LOOK")
        site.install("toolbench", "LOOK = make('look')", look="LOOK")

        said = refusal()

        assert "a tool look" in said
        assert "toolsmith" in said
        assert "toolbench" in said
