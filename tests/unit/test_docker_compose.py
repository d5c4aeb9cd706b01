"""What production promises, read from docker-compose.yml and the Dockerfile: no engine runs them here."""

import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnkeeper_worker.config import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "ops" / "Dockerfile"
DRAIN = timedelta(seconds=20)

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = ("migrate", "worker", "flower")
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "FLOWER_BASIC_AUTH", "GRAFANA_PASSWORD")


def instructions(name: str) -> list[str]:
    """The arguments of each such instruction of the Dockerfile, continuation lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def seconds(duration: str) -> float:
    units = {"s": 1, "m": 60}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([sm])", duration))


class TestCompose:
    def test_it_runs_the_whole_of_turnkeeper(self) -> None:
        assert set(SERVICES) == {
            *("postgres", "redis", "migrate", "worker", "flower"),
            *("prometheus", "grafana"),
        }

    @pytest.mark.parametrize("service", sorted(set(SERVICES) - {"migrate"}))
    def test_a_service_that_stays_has_a_health_check_and_is_restarted(self, service: str) -> None:
        assert SERVICES[service]["healthcheck"]["test"]
        assert SERVICES[service]["restart"] == "unless-stopped"

    def test_the_migration_runs_once_before_the_workers(self) -> None:
        assert SERVICES["migrate"]["restart"] == "no"
        assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert SERVICES["worker"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"

    def test_workers_can_be_scaled(self) -> None:
        worker = SERVICES["worker"]

        assert "replicas" in worker["deploy"]
        assert not {"container_name", "hostname", "ports"} & set(worker)

    def test_a_worker_has_the_time_to_drain(self) -> None:
        assert seconds(SERVICES["worker"]["stop_grace_period"]) > DRAIN.total_seconds()

    def test_redis_keeps_its_messages_and_never_evicts(self) -> None:
        command = " ".join(SERVICES["redis"]["command"])

        assert "--appendonly yes" in command
        assert "--maxmemory-policy noeviction" in command
        assert command.startswith("sh -c exec ")

    def test_postgres_is_the_version_that_the_embedded_stack_runs(self) -> None:
        assert SERVICES["postgres"]["image"] == "postgres:18"

    @pytest.mark.parametrize("service", ["postgres", "redis", "prometheus", "grafana"])
    def test_data_outlives_the_container(self, service: str) -> None:
        volumes = [volume.split(":")[0] for volume in SERVICES[service]["volumes"]]

        assert [name for name in volumes if not name.startswith("./")] == [service]

    @pytest.mark.parametrize("service", ["prometheus", "grafana"])
    def test_what_is_mounted_from_here_is_here_and_stays_as_it_is(self, service: str) -> None:
        mounted = [volume.split(":") for volume in SERVICES[service]["volumes"] if volume.startswith("./")]

        assert mounted
        assert all((ROOT / here).is_dir() and mode == "ro" for here, _, mode in mounted)

    def test_prometheus_asks_the_workers_where_they_show_their_metrics(self) -> None:
        configuration = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())
        (asked,) = configuration["scrape_configs"][0]["dns_sd_configs"]
        environment = SERVICES["worker"]["environment"]

        assert asked["names"] == ["worker"]
        assert str(asked["port"]) == environment["TURNKEEPER_METRICS_PORT"]
        assert environment["TURNKEEPER_METRICS_ADDRESS"] == "0.0.0.0"

    def test_the_workers_settings_are_settings(self) -> None:
        named = {
            name.removeprefix("TURNKEEPER_").lower()
            for name in SERVICES["worker"]["environment"]
            if name.startswith("TURNKEEPER_")
        }

        assert named <= set(Settings.model_fields)

    @pytest.mark.parametrize("service", OURS)
    def test_our_containers_may_do_little(self, service: str) -> None:
        settings = SERVICES[service]

        assert settings["read_only"] is True
        assert settings["cap_drop"] == ["ALL"]
        assert settings["security_opt"] == ["no-new-privileges:true"]

    def test_flower_asks_for_a_password(self) -> None:
        assert SERVICES["flower"]["environment"]["FLOWER_BASIC_AUTH"].startswith("${FLOWER_BASIC_AUTH:?")
        assert "FLOWER_UNAUTHENTICATED_API" not in SERVICES["flower"]["environment"]

    def test_only_flower_and_grafana_are_published_and_on_loopback(self) -> None:
        published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

        assert published == {
            "flower": ["${FLOWER_ADDRESS:-127.0.0.1:5555}:5555"],
            "grafana": ["${GRAFANA_ADDRESS:-127.0.0.1:3000}:3000"],
        }

    def test_every_secret_comes_from_outside_and_is_required(self) -> None:
        text = COMPOSE.read_text()
        used = set(re.findall(r"\$\{(\w*(?:PASSWORD|AUTH)\w*)([^}]{0,2})", text))

        assert used == {(name, ":?") for name in SECRETS}

    def test_no_address_holds_a_literal_password(self) -> None:
        assert not re.search(r"://[^$\s]*:[^$\s/]+@", COMPOSE.read_text())

    def test_the_example_names_every_variable_and_holds_no_value(self) -> None:
        example = (ROOT / "ops" / ".env.example").read_text()
        named = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))

        assert named <= set(re.findall(r"^(?:# )?([A-Z_]+)=", example, flags=re.MULTILINE))
        assert re.findall(r"^[A-Z_]+=.+$", example, flags=re.MULTILINE) == []


class TestDockerfile:
    def test_it_builds_in_two_stages_with_pinned_versions(self) -> None:
        assert len(instructions("FROM")) == 2
        assert any("--constraint constraints.txt" in run for run in instructions("RUN"))

    def test_it_does_not_run_as_root(self) -> None:
        assert instructions("USER") == ["turnkeeper"]

    @pytest.mark.parametrize("instruction", ["ENTRYPOINT", "CMD"])
    def test_signals_reach_the_worker_because_no_shell_stands_between(self, instruction: str) -> None:
        (form,) = instructions(instruction)

        assert form.startswith("[")

    def test_what_it_copies_is_there_and_not_ignored(self) -> None:
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = [shlex.split(copy)[0] for copy in instructions("COPY") if not copy.startswith("--from")]

        assert all((ROOT / path).exists() for path in copied)
        assert all(path == "." or path.split("/")[0] in kept for path in copied)

    def test_the_build_context_has_what_the_wheel_needs(self) -> None:
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

        assert {"pyproject.toml", "README.md", "LICENSE", "shared", "worker", "migrations", "ops"} <= kept
