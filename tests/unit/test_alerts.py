"""Alerts, dashboard and runbook: every number in them exists, and every alert says what to do."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from turnkeeper.errors import ErrorKind
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper_worker.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "ops" / "prometheus"
GRAFANA = ROOT / "ops" / "grafana"

GROUPS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
DASHBOARD = json.loads((GRAFANA / "dashboards" / "turnkeeper.json").read_text())
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in DASHBOARD["panels"]}

TABLE = {row.name: row for row in Metrics({}).table}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
LABELS_OF = {name + suffix: set(row.labels) for name, row in TABLE.items() for suffix in SUFFIXES[row.kind]}
FROM_PROMETHEUS = {"job", "instance", "le"}
VALUES = {
    "kind": {*ErrorKind, "input", "output", "cached", "cache_write", "reasoning"},
    "outcome": {*TurnState, *AttemptOutcome},
    "chain_broken": {"true", "false"},
}


def promtool() -> str | None:
    return shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))


def queries() -> dict[str, str]:
    """Every expression, by where it stands; Grafana's variables for times are written out."""
    of_alerts = {f"alert {name}": rule["expr"] for name, rule in ALERTS.items()}
    of_panels = {
        f"panel {title}, {target['refId']}": re.sub(r"\$__(rate_interval|range)", "5m", target["expr"])
        for title, panel in PANELS.items()
        for target in panel["targets"]
    }
    return of_alerts | of_panels


def nodes(node: Any) -> Iterator[Any]:
    """Yield an expression and all that it is made of."""
    yield node
    parts = (getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector"))
    arguments = getattr(node, "args", None) or ()
    for part in (*parts, *arguments):
        if part is not None and not isinstance(part, str | float):
            yield from nodes(part)


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    return [one for one in nodes(promql_parser.parse(query)) if isinstance(one, promql_parser.VectorSelector)]


every_query = pytest.mark.parametrize(("query"), [pytest.param(one, id=name) for name, one in queries().items()])


@every_query
def test_every_metric_and_label_in_a_query_exists(query: str) -> None:
    found = selectors(query)

    assert found
    for one in found:
        if one.name == "up":
            continue
        labels = {matcher.name for matcher in one.matchers.matchers}
        assert labels <= LABELS_OF[one.name] | FROM_PROMETHEUS, one


@every_query
def test_every_value_that_is_looked_for_can_occur(query: str) -> None:
    for matcher in chain.from_iterable(one.matchers.matchers for one in selectors(query)):
        if matcher.name in VALUES:
            assert set(matcher.value.split("|")) <= VALUES[matcher.name]


@every_query
def test_what_is_summed_by_a_label_has_that_label(query: str) -> None:
    groups = re.findall(r"by \(([^)]*)\)", query)
    named = {label.strip() for group in groups for label in group.split(",")}

    known = set().union(*(LABELS_OF.get(one.name, set()) for one in selectors(query)))
    assert named <= known | FROM_PROMETHEUS


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_metric_is_shown_on_the_dashboard(name: str) -> None:
    shown = {one.name for query in queries().values() for one in selectors(query)}

    assert {name + suffix for suffix in SUFFIXES[TABLE[name].kind]} & shown


class TestAlerts:
    @pytest.mark.parametrize("name", sorted(ALERTS))
    def test_an_alert_says_how_urgent_it_is_what_is_wrong_and_where_to_read_on(self, name: str) -> None:
        rule = ALERTS[name]

        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"] == f"ops/RUNBOOK.md#{name.lower()}"

    def test_every_alert_has_a_heading_in_the_runbook_and_every_heading_an_alert(self) -> None:
        headings = re.findall(r"^## (.+)$", (ROOT / "ops/RUNBOOK.md").read_text(), flags=re.MULTILINE)

        assert headings == list(ALERTS)

    def test_every_heading_of_the_runbook_has_its_four_parts(self) -> None:
        _, *sections = re.split(r"^## ", (ROOT / "ops/RUNBOOK.md").read_text(), flags=re.MULTILINE)

        for section in sections:
            parts = re.findall(r"^\*\*(Means|Users see|Look|Do)\b", section, flags=re.MULTILINE)
            assert parts == ["Means", "Users see", "Look", "Do"], section.splitlines()[0]

    def test_every_alert_is_tested_where_it_fires(self) -> None:
        tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
        cases = [case for test in tests for case in test["alert_rule_test"]]

        assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)

    @pytest.mark.skipif(promtool() is None, reason="promtool is not installed; `make promtool` fetches it")
    @pytest.mark.parametrize(
        "arguments",
        [
            ("check", "config", "prometheus.yml"),
            ("check", "rules", "alerts.yml"),
            ("test", "rules", "alerts_test.yml"),
        ],
        ids=["the configuration", "the rules", "their tests"],
    )
    def test_prometheus_itself_accepts(self, arguments: tuple[str, ...]) -> None:
        ran = subprocess.run(
            [promtool() or "", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=60
        )

        assert ran.returncode == 0, ran.stdout + ran.stderr


class TestDashboard:
    def test_it_is_found_again_by_its_uid_and_asks_whatever_prometheus_is_chosen(self) -> None:
        variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}

        assert DASHBOARD["uid"] == "turnkeeper"
        assert variables["datasource"]["type"] == "datasource"
        sources = [one["datasource"] for panel in PANELS.values() for one in (panel, *panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}

    def test_panels_have_names_of_their_own_and_do_not_overlap(self) -> None:
        cells = [
            (x, y)
            for panel in DASHBOARD["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]

        assert len(PANELS) == len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24

    def test_the_runbook_names_panels_that_are_there(self) -> None:
        text = (ROOT / "ops/RUNBOOK.md").read_text()
        named = set(re.findall(r"\*([A-Z][a-z ]+)\*", text.replace("**", "")))

        assert {"Retries by kind", "Queue wait", "Terminal failures"} <= named
        assert named - {"Turnkeeper"} <= set(PANELS)

    def test_grafana_finds_it_and_its_prometheus(self) -> None:
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        mounts = {
            there: ROOT / here for here, there, *_ in (one.split(":") for one in compose["grafana"]["volumes"])
        }
        (found,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/turnkeeper.yml").read_text())["providers"]
        (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())[
            "datasources"
        ]

        assert (mounts[found["options"]["path"]] / "turnkeeper.json").is_file()
        assert mounts["/etc/grafana/provisioning"] == GRAFANA / "provisioning"
        assert source["url"] == "http://prometheus:9090"
