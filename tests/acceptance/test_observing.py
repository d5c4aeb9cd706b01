"""What operators see of a real worker: metrics, to the last count, and a log without a word of a chat."""

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as read_page

from turnkeeper import TurnState
from turnkeeper.events import TurnPart
from turnkeeper.views import TurnView
from turnkeeper_ops.dev.addresses import SIMULATOR_KEY
from turnkeeper_ops.services.ports import LOOPBACK, free_port
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

CONCURRENCY = 40
WITHIN = timedelta(seconds=10)
SECRET_WORDS = "the duchess hides her pearls"
Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Watched:
    """A stack whose worker shows its metrics."""

    site: Site
    port: int

    def scrape(self) -> dict[Sample, float]:
        """Read the page as Prometheus does."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/metrics", timeout=5) as page:
            families = list(read_page(page.read().decode()))
        return {(one.name, frozenset(one.labels.items())): one.value for it in families for one in it.samples}

    def gauge(self, name: str) -> float:
        return self.scrape()[sample(name)]

    def log(self) -> list[dict[str, Any]]:
        """Return the lines that the worker wrote so far; each is one JSON object."""
        lines = self.site.running.workers[0].output().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def sample(name: str, **labels: str) -> Sample:
    return f"turnkeeper_{name}", frozenset(labels.items())


def simulated(name: str, **labels: str) -> Sample:
    return sample(name, provider="simulator", model="sim-1", **labels)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    port = free_port()
    lines = (f"metrics_port = {port}", "log_json = true")
    for site in open_site(tmp_path_factory.mktemp("watched"), concurrency=CONCURRENCY, lines=lines):
        yield Watched(site, port)


def cancel_in_mid_answer(site: Site) -> TurnView:
    word = site.script({"type": "stall", "at": 2, "seconds": 600})
    turn = site.enqueue(f"Wait {SECRET_WORDS} {word}")
    for event in site.keeper.follow(turn.id):
        if isinstance(event, TurnPart):
            site.keeper.cancel(turn.id)
    return site.keeper.show(turn.id)


def run_all_kinds(site: Site) -> dict[str, TurnView]:
    """Run a turn for each way in which one goes."""
    throttled = site.script({"type": "status", "status": 429, "headers": {"Retry-After": "1"}}, {"type": "answer"})
    completed = site.run(f"Hello {SECRET_WORDS}")
    return {
        "completed": completed,
        "healed": site.run(f"And {SECRET_WORDS} sim:lost-anchor", chat=completed.chat_id),
        "retried": site.run(f"Again {SECRET_WORDS} {throttled}"),
        "failed": site.run(f"Try {SECRET_WORDS} sim:unauthorized"),
        "cancelled": cancel_in_mid_answer(site),
    }


def spent(views: dict[str, TurnView]) -> dict[Sample, float]:
    tokens: Counter[str] = Counter()
    for view in views.values():
        tokens.update({kind: count for kind, count in (view.usage or {}).items() if kind != "total_tokens"})
    return {
        simulated("tokens_total", kind=kind.removesuffix("_tokens")): count
        for kind, count in tokens.items()
        if count
    }


def test_the_page_counts_every_turn_attempt_retry_and_failure_exactly(watched: Watched) -> None:
    before = watched.scrape()

    views = run_all_kinds(watched.site)

    expected = {
        simulated("turns_total", outcome="completed"): 3,
        simulated("turns_total", outcome="failed"): 1,
        simulated("turns_total", outcome="cancelled"): 1,
        simulated("attempts_total", outcome="completed"): 3,
        simulated("attempts_total", outcome="healed"): 1,
        simulated("attempts_total", outcome="retried"): 1,
        simulated("attempts_total", outcome="failed"): 1,
        simulated("attempts_total", outcome="cancelled"): 1,
        simulated("stream_retries_total", kind="rate_limit", chain_broken="false"): 1,
        simulated("stream_retries_total", kind=str(views["healed"].attempts[0].kind), chain_broken="true"): 1,
        simulated("terminal_failures_total", kind="auth"): 1,
        sample("queue_wait_seconds_count"): 6,
        simulated("turn_duration_seconds_count"): 5,
        simulated("countdown_seconds_count"): 1,
        simulated("countdown_seconds_sum"): pytest.approx(views["retried"].attempts[0].delay_ms / 1000, abs=0.001),
        simulated("time_to_first_event_seconds_count"): 4,
        simulated("provider_silence_seconds_count"): 4,
        **spent(views),
    }

    def deltas() -> dict[Sample, float]:
        wanted = {name for name, _ in expected}
        changed = {key: value - before.get(key, 0) for key, value in watched.scrape().items() if key[0] in wanted}
        return {key: delta for key, delta in changed.items() if delta}

    poll(lambda: deltas() == expected, within=WITHIN)
    assert deltas() == expected
    assert {name for (name, _), count in expected.items() if name == "turnkeeper_tokens_total" and count}


def test_gauges_show_what_is_here_now(watched: Watched) -> None:
    word = watched.site.script({"type": "stall", "at": 2, "seconds": 600})
    turns = [watched.site.enqueue(f"Wait {word}") for _ in range(3)]

    assert poll(lambda: watched.gauge("leases_held") == 3, within=WITHIN)
    assert watched.gauge("turns_in_flight") == 3
    assert watched.gauge("concurrency") == CONCURRENCY
    assert 0 <= watched.gauge("lease_age_seconds") < 15
    for turn in turns:
        watched.site.keeper.cancel(turn.id)
    assert poll(lambda: watched.gauge("turns_in_flight") == 0, within=WITHIN)


def test_names_that_a_producer_makes_up_become_no_labels(watched: Watched) -> None:
    for number in range(5):
        watched.site.run("Hello", model=f"made-up-{number}")

    page = str(watched.scrape())
    assert "made-up" not in page
    assert simulated("turns_total", outcome="completed") in watched.scrape()
    assert watched.scrape()[sample("turns_total", provider="simulator", model="other", outcome="completed")] >= 1


def test_each_turn_ends_with_one_line_that_tells_all_but_what_was_said(watched: Watched) -> None:
    views = run_all_kinds(watched.site)
    ids = {str(view.id): name for name, view in views.items()}

    def told() -> dict[str, dict[str, Any]]:
        lines = [line for line in watched.log() if line["event"] == "turn.ended" and line["turn_id"] in ids]
        assert len(lines) == len({line["turn_id"] for line in lines})
        return {ids[line["turn_id"]]: line for line in lines}

    assert poll(lambda: len(told()) == len(views), within=WITHIN)
    lines = told()
    for name, view in views.items():
        line = lines[name]
        assert line["outcome"] == view.state
        assert (line["chat_id"], line["provider"], line["model"]) == (str(view.chat_id), "simulator", "sim-1")
        assert line["level"] == "info"
        assert (line["steps"], line["attempts"]) == (1, len(view.attempts))
        assert {kind: line[kind] for kind in view.usage or {}} == (view.usage or {})
    assert lines["failed"]["kind"] == "auth"
    assert lines["retried"]["duration_s"] >= 1
    assert lines["retried"]["epoch"] == 2


def test_every_line_about_a_turn_names_it_its_chat_its_attempt_and_its_epoch(watched: Watched) -> None:
    view = watched.site.run("Try sim:unauthorized")

    def about() -> list[dict[str, Any]]:
        return [line for line in watched.log() if line.get("turn_id") == str(view.id)]

    assert poll(lambda: {"attempt.failed", "turn.ended"} <= {line["event"] for line in about()}, within=WITHIN)
    for line in about():
        assert (line["chat_id"], line["attempt"], line["epoch"]) == (str(view.chat_id), 1, 1)


def test_no_word_of_a_chat_and_no_key_is_in_the_log(watched: Watched) -> None:
    views = run_all_kinds(watched.site)
    wrong = watched.site.run(f"Try {SECRET_WORDS}", provider="wrong_key")
    ids = {str(view.id) for view in (*views.values(), wrong)}
    assert poll(lambda: ids <= {line.get("turn_id") for line in watched.log()}, within=WITHIN)

    output = watched.site.running.workers[0].output()

    assert wrong.state is TurnState.FAILED
    assert SECRET_WORDS not in output
    assert "I have read" not in output
    assert SIMULATOR_KEY not in output.replace("sk-simulator-second", "")
    assert "sk-not-the-simulators-key" not in output
