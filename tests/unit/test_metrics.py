"""What Prometheus is told: which series there are, and that nobody can make up more."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as read_page

from turnkeeper.errors import ErrorKind
from turnkeeper.exceptions import InvalidSettings
from turnkeeper_ops.services.ports import free_port
from turnkeeper_worker.metrics import (
    KNOWN_AFTER_TURNS,
    MAX_CANDIDATES,
    MAX_LEARNED,
    NONE,
    OTHER,
    UNKNOWN,
    LabelBounds,
    Metrics,
    serving,
)

LOOPBACK = "127.0.0.1"


def metrics() -> Metrics:
    return Metrics({"openai": ("gpt-5",), "local": ()}, {"openai": "gpt-5"})


def series(of: Metrics) -> int:
    return sum(len(family.samples) for family in of.registry.collect())


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=5) as page:
        return page.read().decode()


class TestLabels:
    @pytest.mark.parametrize(
        ("provider", "model", "labels"),
        [
            pytest.param("openai", "gpt-5", ("openai", "gpt-5"), id="what is configured has its name"),
            pytest.param("openai", None, ("openai", "gpt-5"), id="no model is the provider's own"),
            pytest.param("local", None, ("local", NONE), id="no model at all"),
            pytest.param("openai", "gpt-6", ("openai", OTHER), id="a model that nobody configured"),
            pytest.param("local", "gpt-5", ("local", OTHER), id="a model of another provider"),
            pytest.param("evil", "gpt-5", (UNKNOWN, OTHER), id="a provider that nobody configured"),
            pytest.param("evil", None, (UNKNOWN, NONE), id="neither"),
        ],
    )
    def test_a_name_becomes_a_label_where_it_is_known(
        self, provider: str, model: str | None, labels: tuple[str, str]
    ) -> None:
        assert metrics().labels(provider, model) == labels

    def test_a_model_that_many_turns_name_gets_its_name(self) -> None:
        bounds = LabelBounds({"openai": ()}, {})

        for _ in range(KNOWN_AFTER_TURNS - 1):
            bounds.note("openai", "gpt-6")
        before = bounds.of("openai", "gpt-6")
        bounds.note("openai", "gpt-6")

        assert before == ("openai", OTHER)
        assert bounds.of("openai", "gpt-6") == ("openai", "gpt-6")

    def test_no_more_than_some_models_are_learned_however_often_they_are_named(self) -> None:
        bounds = LabelBounds({"openai": ()}, {})
        names = [f"model-{number}" for number in range(MAX_LEARNED + 20)]

        for name in names:
            for _ in range(KNOWN_AFTER_TURNS):
                bounds.note("openai", name)

        assert len({bounds.of("openai", name) for name in names}) == MAX_LEARNED + 1

    def test_names_that_are_never_repeated_take_no_memory(self) -> None:
        bounds = LabelBounds({"openai": ()}, {})

        for number in range(MAX_CANDIDATES * 3):
            bounds.note("openai", f"model-{number}")

        assert len(bounds._seen) <= MAX_CANDIDATES

    @given(st.lists(st.tuples(st.text(), st.none() | st.text()), max_size=30))
    def test_hostile_names_cannot_grow_the_registry(self, names: list[tuple[str, str | None]]) -> None:
        under_test = metrics()
        for labels in (
            ("openai", "gpt-5"),
            ("openai", OTHER),
            ("local", OTHER),
            ("local", NONE),
            (UNKNOWN, OTHER),
            (UNKNOWN, NONE),
        ):
            under_test.count(under_test.attempts, labels, "failed")
            under_test.observe(under_test.duration, labels, 1)
        before = series(under_test)

        for provider, model in names:
            for name in (provider, "openai", "local"):
                under_test.named(name, model)
                labels = under_test.labels(name, model)
                under_test.count(under_test.attempts, labels, "failed")
                under_test.observe(under_test.duration, labels, 1)

        assert series(under_test) == before


class TestPage:
    def test_what_alerts_look_at_is_there_before_it_happens(self) -> None:
        under_test = metrics()

        labels = {"provider": "openai", "model": "gpt-5", "kind": "auth"}
        assert under_test.registry.get_sample_value("turnkeeper_terminal_failures_total", labels) == 0
        failed = {"provider": "local", "model": OTHER, "outcome": "failed"}
        assert under_test.registry.get_sample_value("turnkeeper_turns_total", failed) == 0

    def test_every_metric_is_in_the_table_and_says_what_it_is(self) -> None:
        under_test = metrics()

        families = {one.name: one for one in under_test.registry.collect() if one.name.startswith("turnkeeper_")}
        rows = {row.name.removesuffix("_total"): row for row in under_test.table}
        assert rows.keys() == families.keys()
        assert all(row.kind == families[name].type for name, row in rows.items())
        assert all(row.meaning.endswith(".") for row in rows.values())

    def test_two_workers_of_one_process_share_nothing(self) -> None:
        one, two = metrics(), metrics()

        one.leases_lost.inc()

        assert two.registry.get_sample_value("turnkeeper_leases_lost_total") == 0

    def test_it_is_read_over_http_until_the_worker_ends(self) -> None:
        port, under_test = free_port(), metrics()
        under_test.count(under_test.stream_retries, ("openai", "gpt-5"), ErrorKind.RATE_LIMIT, "false")

        with serving(under_test, LOOPBACK, port):
            page = fetch(port)

        samples = [one for family in read_page(page) for one in family.samples]
        (retried,) = (one for one in samples if one.name == "turnkeeper_stream_retries_total")
        assert retried.value == 1
        assert retried.labels == {
            "provider": "openai",
            "model": "gpt-5",
            "kind": "rate_limit",
            "chain_broken": "false",
        }
        assert "process_cpu_seconds_total" in {one.name for one in samples}
        with pytest.raises(urllib.error.URLError):
            fetch(port)

    def test_port_0_opens_nothing(self) -> None:
        with serving(metrics(), "no address at all", 0):
            pass

    @pytest.mark.parametrize("address", ["256.0.0.1", "no such host.invalid"])
    def test_an_address_that_is_none_is_one_line(self, address: str) -> None:
        with (
            pytest.raises(InvalidSettings, match="metrics_port cannot be opened") as raised,
            serving(metrics(), address, free_port()),
        ):
            pass

        assert "\n" not in str(raised.value)

    def test_a_port_that_is_taken_is_one_line_that_says_what_to_do(self) -> None:
        with socket.create_server((LOOPBACK, 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(InvalidSettings) as raised, serving(metrics(), LOOPBACK, port):
                pass

        said = str(raised.value)
        assert f"{LOOPBACK}:{port}" in said
        assert "TURNKEEPER_METRICS_PORT" in said
        assert "\n" not in said


def test_importing_registers_nothing_globally() -> None:
    look = (
        "import turnkeeper_worker.metrics, prometheus_client\n"
        "print([one.name for one in prometheus_client.REGISTRY.collect() if 'turnkeeper' in one.name])"
    )

    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout == "[]\n"
