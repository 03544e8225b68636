"""What is deployed: every file parses, names flags and metrics that exist, and keeps to what the documentation promises."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import DOCS, blocks, check_options
from vllm.entrypoints.cli import COMMANDS, command_parser
from vllm.entrypoints.serve.metrics import METRICS as SERVED

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FOREIGN = ("docker", "kubectl", "pip", "curl", "openssl", "systemctl")
"""Commands of others, whose flags are theirs."""


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def metrics_in(text: str) -> set[str]:
    """Return the metrics that a text names, without what stands at the ends of a counter's and a histogram's series."""
    names = re.findall(r"vllm:([a-z0-9]+_[a-z0-9_]+)", text)
    return {re.sub(r"(_total|_info)?(_bucket|_sum|_count)?$", "", name, count=1) for name in names}


METRICS = metrics_in(" ".join(SERVED))


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(document, dict) for document in documents(path))


class TestDockerfile:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()

    def stages(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in self.lines:
            if line.startswith("FROM "):
                found[line.rsplit(" AS ", 1)[1]] = [line]
            elif found and line.strip():
                found[list(found)[-1]].append(line)
        return found

    @pytest.mark.parametrize("target", ["cpu", "cuda"])
    def test_a_target_runs_without_root_and_says_how_it_is(self, target: str) -> None:
        stages = self.stages()
        assert f"COPY --from=build-{target} /opt/vllm /opt/vllm" in stages[target]
        assert stages[target].index("USER vllm") > 0 and stages[target][0] == f"FROM runtime AS {target}"
        runtime = "\n".join(stages["runtime"])
        assert "HEALTHCHECK" in runtime and "/health" in runtime and 'ENTRYPOINT ["vllm", "serve"]' in runtime
        assert "g++" not in runtime and "g++" in "\n".join(stages["build"])

    def test_what_is_copied_is_there_and_not_ignored(self) -> None:
        ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        copied = [line.split()[1:-1] for line in self.lines if line.startswith("COPY ") and "--from" not in line]
        assert copied
        for name in {name for names in copied for name in names}:
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored

    def test_torch_is_what_the_package_wants(self) -> None:
        (wanted,) = re.findall(r'"(torch[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())
        assert re.findall(r'pip install "(torch[^"]*)"', self.text) == [wanted, wanted]


class TestCompose:
    services = documents(DEPLOY / "compose.yaml")[0]["services"]

    def test_the_server_starts_with_its_command(self) -> None:
        command = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", part) for part in self.services["vllm"]["command"]]
        check_options(command)
        assert re.search(
            rf" AS {self.default_of(self.services['vllm']['build']['target'])}$", TestDockerfile.text, re.M
        )

    def test_every_file_that_is_mounted_is_there(self) -> None:
        for service in self.services.values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                assert not source.startswith(".") or (DEPLOY / source).exists(), source

    def test_nothing_but_the_server_is_open_to_the_network(self) -> None:
        ports = {name: service.get("ports", []) for name, service in self.services.items()}
        assert ports["prometheus"] == [] and all(port.startswith("127.0.0.1:") for port in ports["grafana"])

    def test_prometheus_brings_the_key_to_the_server(self) -> None:
        (job,) = documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"]
        assert job["static_configs"] == [{"targets": ["vllm:8000"]}]
        secret = Path(job["authorization"]["credentials_file"])
        assert secret.parent == Path("/run/secrets") and secret.name in self.services["prometheus"]["secrets"]

    def test_grafana_finds_its_source_and_its_dashboard(self) -> None:
        (source,) = documents(DEPLOY / "grafana" / "datasource.yaml")[0]["datasources"]
        assert source["url"] == "http://prometheus:9090"
        (provider,) = documents(DEPLOY / "grafana" / "provider.yaml")[0]["providers"]
        mounted = [volume for volume in self.services["grafana"]["volumes"] if volume.endswith("dashboard.json:ro")]
        assert mounted[0].split(":")[1].startswith(provider["options"]["path"])

    def default_of(self, value: str) -> str:
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


class TestDashboard:
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]

    def test_every_query_asks_for_metrics_of_ours(self) -> None:
        assert len(self.queries) > 20
        assert all(metrics_in(query) for query in self.queries)
        assert set().union(*map(metrics_in, self.queries)) <= METRICS

    def test_every_query_is_of_the_chosen_model(self) -> None:
        for query in self.queries:
            assert len(re.findall(r"vllm:\w+", query)) == len(re.findall(r'vllm:\w+\{model_name=~"\$model"', query)), (
                query
            )

    def test_panels_have_names_and_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in self.board["panels"]:
            assert panel["title"]
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
            taken |= cells
        assert len({panel["id"] for panel in self.board["panels"]}) == len(self.board["panels"])


class TestUnit:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "vllm.service")

    def test_it_starts_the_server_with_the_options_beside_it(self) -> None:
        program, *arguments = shlex.split(self.unit["Service"]["ExecStart"])
        assert (program, arguments[0]) == ("/opt/vllm/bin/vllm", "serve")
        check_options([part.replace("/etc/vllm", str(DEPLOY)) for part in arguments[1:]])

    def test_stopping_waits_for_answers(self) -> None:
        options = documents(DEPLOY / "server.yaml")[0]
        assert int(self.unit["Service"]["TimeoutStopSec"]) > options["shutdown-timeout"]
        assert self.unit["Service"]["KillMode"] == "mixed"


class TestKubernetes:
    kinds = {document["kind"]: document for document in documents(DEPLOY / "kubernetes.yaml")}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]

    def test_the_server_starts_with_the_options_of_the_config_map(self, tmp_path: Path) -> None:
        for name, content in self.kinds["ConfigMap"]["data"].items():
            (tmp_path / name).write_text(content)
        check_options([part.replace("/etc/vllm", str(tmp_path)) for part in self.container["args"]])

    def test_the_options_are_those_of_the_other_deployments(self) -> None:
        assert yaml.safe_load(self.kinds["ConfigMap"]["data"]["server.yaml"]) == documents(DEPLOY / "server.yaml")[0]

    def test_probes_ask_for_health_and_have_patience(self) -> None:
        probes = {name: self.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
        assert {probe["httpGet"]["path"] for probe in probes.values()} == {"/health"}
        lasting = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
        assert lasting["readiness"] < lasting["liveness"] < lasting["startup"]

    def test_names_fit_together(self) -> None:
        labels = self.kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert self.kinds["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert self.kinds["Service"]["spec"]["selector"].items() <= labels.items()
        assert {mount["name"] for mount in self.container["volumeMounts"]} == {
            volume["name"] for volume in self.pod["volumes"]
        }
        ports = {port["name"] for port in self.container["ports"]}
        assert self.kinds["Service"]["spec"]["ports"][0]["targetPort"] in ports

    def test_nothing_runs_as_root_and_stopping_waits_for_answers(self) -> None:
        assert (
            self.pod["securityContext"]["runAsNonRoot"]
            and not self.container["securityContext"]["allowPrivilegeEscalation"]
        )
        assert f"--uid {self.pod['securityContext']['runAsUser']} " in TestDockerfile.text
        options = yaml.safe_load(self.kinds["ConfigMap"]["data"]["server.yaml"])
        pause = int(self.container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert self.pod["terminationGracePeriodSeconds"] > options["shutdown-timeout"] + pause


@pytest.mark.parametrize("page", ["serving", "deployment", "metrics"])
class TestDocumentation:
    def test_every_command_line_is_one_that_the_command_takes(self, page: str) -> None:
        lines = re.findall(r"^ *(?:\$ )?(vllm [^\n`|>&]*(?:\\\n[^\n`|>&]*)*)", text_of(page), re.MULTILINE)
        assert lines
        for line in lines:
            words = shlex.split(line.replace("\\\n", " "), comments=True)[1:]
            name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
            flags = {word.split("=")[0] for word in words if word.startswith("--")}
            assert flags <= set(command_parser(name)[0].flags()), line

    def test_every_flag_exists(self, page: str) -> None:
        known = set().union(*(command_parser(name)[0].flags() for name in COMMANDS))
        lines = "\n".join(re.findall(rf"^.*(?:{'|'.join(FOREIGN)}) [^\n]*", text_of(page), re.M))
        used = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", text_of(page)))
        assert used - set(re.findall(r"(--[a-z][a-z-]+)", lines)) - known == set()

    def test_every_metric_and_file_exists(self, page: str) -> None:
        assert metrics_in(text_of(page)) <= METRICS
        for name in re.findall(r"\]\(([^)#]+)[)#]", text_of(page)):
            assert name.startswith("http") or (DOCS / name).exists(), name


def test_what_compose_is_told_of_a_gpu_is_of_its_server() -> None:
    (block,) = (block for block in blocks("deployment", "yaml") if "compose.gpu" in block)
    assert set(yaml.safe_load(block)["services"]) <= set(TestCompose.services)


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text("utf-8")
