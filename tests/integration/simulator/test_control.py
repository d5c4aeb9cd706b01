"""The control API: scripts, the log, health."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent

DEADLINE_SECONDS = 10.0

Requests = Callable[..., list[dict[str, Any]]]
LastRequest = Callable[[], dict[str, Any]]


def stream(client: openai.OpenAI, text: str, **parameters: Any) -> list[ResponseStreamEvent]:
    with client.responses.create(model="m", input=text, stream=True, **parameters) as events:
        return list(events)


class TestControl:
    def test_the_log_shows_what_was_sent_and_what_became_of_it(
        self, client: openai.OpenAI, requests: Requests, last_request: LastRequest
    ) -> None:
        first = client.responses.create(model="m", input="My name is Ada")
        before = last_request()["number"]

        stream(
            client,
            "Who am I? sim:reasoning",
            previous_response_id=first.id,
            store=True,
            extra_headers={"X-Client-Request-Id": "turn-log/3"},
        )

        (entry,) = requests(turn="turn-log", after=before)
        assert {name: entry[name] for name in ("turn", "attempt", "script", "step_number", "step")} == {
            "turn": "turn-log",
            "attempt": "3",
            "script": "reasoning",
            "step_number": 1,
            "step": "answer",
        }
        assert (entry["model"], entry["stream"], entry["store"], entry["status"]) == ("m", True, True, 200)
        assert entry["previous_response_id"] == first.id
        assert [item["content"] for item in entry["input"]] == ["Who am I? sim:reasoning"]
        assert [item["role"] for item in entry["history"]] == ["user", "assistant", "user"]
        assert (entry["outcome"], entry["chunks"] > 3) == ("completed", True)
        assert 0 < entry["ended_monotonic"] - entry["arrived_monotonic"] < DEADLINE_SECONDS
        assert entry["arrived_monotonic"] < time.monotonic()

    def test_a_refused_request_is_logged_with_its_reason(
        self, client: openai.OpenAI, last_request: LastRequest
    ) -> None:
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="m", input="Hello", previous_response_id="resp_gone")

        entry = last_request()
        assert (entry["status"], entry["outcome"], entry["step"]) == (400, "refused", None)
        assert entry["previous_response_id"] == "resp_gone"
        assert "resp_gone" in entry["detail"]

    def test_scripts_are_listed_added_and_removed(self, control: httpx.Client) -> None:
        added = control.put("/scripts/added", json={"steps": [{"type": "cut"}]})

        assert (added.status_code, added.json()) == (200, {"name": "added", "steps": 1})
        listed = control.get("/scripts").json()["scripts"]
        assert (listed["added"]["ready_made"], listed["rate-limited"]["ready_made"]) == (False, True)
        assert listed["added"]["steps"] == [{"type": "cut"}]
        assert [control.delete("/scripts/added").status_code for _ in range(2)] == [200, 404]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            pytest.param("mine", b'{"steps": []}', id="no steps"),
            pytest.param("mine", b'{"steps": [{"type": "cutt"}]}', id="unknown step"),
            pytest.param("mine", b"{", id="no JSON"),
            pytest.param("Mine", b'{"steps": [{"type": "cut"}]}', id="a name in capitals"),
        ],
    )
    def test_an_invalid_script_is_refused_in_one_sentence(
        self, control: httpx.Client, name: str, content: bytes
    ) -> None:
        refused = control.put(f"/scripts/{name}", content=content)

        assert refused.status_code == 422
        assert refused.json()["error"].startswith(f"script '{name}' is not valid: ")

    def test_the_log_can_be_cleared(
        self, client: openai.OpenAI, control: httpx.Client, requests: Requests
    ) -> None:
        client.responses.create(model="m", input="Hello")

        assert control.delete("/requests").json()["cleared"] > 0

        assert requests() == []

    def test_the_log_can_be_read_without_the_items(self, client: openai.OpenAI, requests: Requests) -> None:
        client.responses.create(model="m", input="Hello")

        entry = requests(items=0)[-1]

        assert "input" not in entry
        assert "history" not in entry
        assert entry["request_bytes"] > 0

    def test_bad_queries_and_addresses_are_told_apart(self, control: httpx.Client) -> None:
        assert control.get("/requests", params={"after": "x"}).status_code == 422
        assert control.get("/nothing").status_code == 404

    def test_health_counts(self, control: httpx.Client) -> None:
        health = control.get("/health").json()

        assert (health["status"], health["scripts"] > 20) == ("ok", True)
