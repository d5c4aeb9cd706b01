"""The process: its arguments, its address, its end."""

import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import openai
import pytest

KEY = "sk-simulator"
DEADLINE_SECONDS = 10.0

Start = Callable[..., AbstractContextManager[subprocess.Popen[str]]]
Address = Callable[[subprocess.Popen[str]], str]


class TestProcess:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_ends_cleanly_even_in_mid_answer(
        self, start: Start, address: Address, number: signal.Signals
    ) -> None:
        with start() as child:
            url = address(child)
            with (
                httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client,
                client.stream(
                    "POST", "/v1/responses", json={"model": "m", "input": "sim:silence", "stream": True}
                ) as answer,
            ):
                next(answer.iter_raw())
                child.send_signal(number)
                _, errors = child.communicate(timeout=DEADLINE_SECONDS)

        assert (child.returncode, errors) == (0, "")

    def test_a_port_in_use_is_one_line_and_exit_code_2(self, start: Start, url: str) -> None:
        port = url.rpartition(":")[2]
        with start("--port", port) as child:
            _, errors = child.communicate(timeout=DEADLINE_SECONDS)

        assert (child.returncode, errors.count("\n")) == (2, 1)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in errors

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            pytest.param(["--api-key"], "--api-key: expected one argument", id="no key"),
            pytest.param(["--port", "many"], "invalid int value: 'many'", id="port is no number"),
            pytest.param(["--port", "70000"], "cannot listen on 127.0.0.1:70000", id="port is too high"),
            pytest.param(["--chunk-delay-ms", "-1"], "must be zero or more", id="negative delay"),
            pytest.param(["--host", "256.0.0.1"], "cannot listen on 256.0.0.1:0", id="no such host"),
            pytest.param(["--script-file", "missing.json"], "missing.json: No such file", id="missing file"),
        ],
    )
    def test_bad_arguments_are_one_line_and_exit_code_2(
        self, start: Start, arguments: list[str], complaint: str
    ) -> None:
        with start(*arguments) as child:
            _, errors = child.communicate(timeout=DEADLINE_SECONDS)

        assert (child.returncode, errors.count("\n")) == (2, 1)
        assert complaint in errors

    def test_several_keys_are_accepted_and_no_other(self, start: Start, address: Address) -> None:
        with start("--api-key", "sk-one", "--api-key", "sk-two") as child:
            url = address(child)
            accepted = [
                httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
                for key in ("sk-one", "sk-two", KEY)
            ]

        assert accepted == [200, 200, 401]

    def test_a_prompt_beyond_the_context_window_is_refused(self, start: Start, address: Address) -> None:
        with start("--context-tokens", "10") as child:
            url = address(child)
            with (
                openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client,
                pytest.raises(openai.BadRequestError) as caught,
            ):
                client.responses.create(model="m", input="x" * 41)

        assert caught.value.code == "context_length_exceeded"

    def test_scripts_come_from_a_file_and_the_key_from_an_argument(
        self, start: Start, address: Address, tmp_path: Path
    ) -> None:
        path = tmp_path / "scripts.toml"
        path.write_text('[[story.steps]]\ntype = "answer"\ntext = "Once upon a time"\n')

        with start("--script-file", str(path), "--api-key", "sk-another") as child:
            url = address(child)
            with openai.OpenAI(api_key="sk-another", base_url=f"{url}/v1", max_retries=0) as client:
                answer = client.responses.create(model="m", input="sim:story")

        assert answer.output_text == "Once upon a time"
