"""A simulator in a process of its own, the clients that drive it, and a look at its log."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import anthropic
import httpx
import openai
import pytest

KEY = "sk-simulator"
SECOND_KEY = "sk-simulator-second"
DEADLINE_SECONDS = 10.0

Script: TypeAlias = Callable[..., str]
Requests: TypeAlias = Callable[..., list[dict[str, Any]]]
Start: TypeAlias = Callable[..., AbstractContextManager[subprocess.Popen[str]]]
Address: TypeAlias = Callable[[subprocess.Popen[str]], str]


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "turnkeeper_ops.simulator", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def read_address(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    announced = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", child.stdout.readline())
    assert announced is not None
    return announced[1]


@pytest.fixture(scope="session")
def start() -> Start:
    """Return the function that starts a simulator with arguments of its own."""
    return process


@pytest.fixture(scope="session")
def address() -> Address:
    """Return the function that waits until a started simulator tells its address."""
    return read_address


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the simulator that the tests of a file share; where words name turns, files must not."""
    with process("--chunk-delay-ms", "1", "--api-key", KEY, "--api-key", SECOND_KEY) as child:
        yield read_address(child)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=f"{url}/v1", max_retries=0, timeout=DEADLINE_SECONDS
    ) as client:
        yield client


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=KEY, base_url=url, max_retries=0, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def second_client(client: openai.OpenAI) -> openai.OpenAI:
    """The client of another account."""
    return client.with_options(api_key=SECOND_KEY)


@pytest.fixture(scope="module")
def second_claude(claude: anthropic.Anthropic) -> anthropic.Anthropic:
    """The client of another account."""
    return claude.with_options(api_key=SECOND_KEY)


@pytest.fixture
async def async_claude(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key=KEY, base_url=url, max_retries=0, timeout=DEADLINE_SECONDS
    ) as client:
        yield client


@pytest.fixture(scope="module")
def control(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/simulator") as control:
        yield control


@pytest.fixture(scope="module")
def script(control: httpx.Client) -> Script:
    """Return a function that registers steps and returns a message that asks for them."""

    def register(*steps: dict[str, Any], **rest: Any) -> str:
        control.put("/scripts/mine", json={"steps": steps, **rest}).raise_for_status()
        return "Tell me of rivers sim:mine"

    return register


@pytest.fixture(scope="module")
def requests(control: httpx.Client) -> Requests:
    """Return a function that reads the log."""

    def read(**query: Any) -> list[dict[str, Any]]:
        logged: list[dict[str, Any]] = control.get("/requests", params=query).json()["requests"]
        return logged

    return read


@pytest.fixture(scope="module")
def last_request(requests: Requests) -> Callable[[], dict[str, Any]]:
    """Return a function that reads the newest entry of the log."""
    return lambda: requests()[-1]
