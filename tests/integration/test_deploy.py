"""The deployment recipes: proxies are run, and other files are checked against the settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
import yaml

from sdstream.cli import cluster as node
from sdstream.cli.main import main
from sdstream.service.metrics import Metrics
from sdstream.settings import Settings
from tests.support.documents import ROOT, Page
from tests.support.nginx import nginx
from tests.support.servers import (
    GENERATIONS,
    ServerProcess,
    free_port,
    running_server,
    wait_until,
)

PAGE = Page(ROOT / "docs/deploy/nginx.md")
BODY = {"prompt": "a", "steps": 3, "stream": True}


def blocks(language: str) -> list[str]:
    """Return the proxy page's code blocks in one language."""
    return [text for found, text in PAGE.fences() if found == language]


def program(name: str, package: str) -> str:
    """Return a program's path, or skip the test if it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt install {package})")
    return path


def check_proxy(address: str) -> None:
    """Check that a stream ends and that an image's link works through the proxy."""
    with httpx2.stream("POST", address + GENERATIONS, json=BODY, timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.read().endswith(b"data: [DONE]\n\n")
    plain = httpx2.post(address + GENERATIONS, json={"prompt": "a", "steps": 1}, timeout=60)
    assert httpx2.get(plain.json()["data"][0]["url"], timeout=10).status_code == 200


def test_nginx(fake_server: ServerProcess, tmp_path: Path) -> None:
    """The page's nginx configuration works; the test uses plain HTTP."""
    (block,) = blocks("nginx")
    block = re.sub(r"\n *ssl_certificate[^;]*;", "", block).replace("listen 443 ssl;", "listen 80;")
    with nginx(tmp_path, block, fake_server) as address:
        check_proxy(address)


@pytest.mark.parametrize(("number", "prefix"), [(0, ""), (1, "/images")])
def test_caddy(fake_server: ServerProcess, tmp_path: Path, number: int, prefix: str) -> None:
    """The page's Caddy configurations work; the test uses plain HTTP."""
    path = program("caddy", "caddy")
    port = free_port()
    block = blocks("caddy")[number]
    name = block.split(" ")[0]
    block = block.replace(f"{name} {{", f"http://127.0.0.1:{port} {{")
    assert block.count("127.0.0.1:8000") == 1
    block = block.replace("127.0.0.1:8000", fake_server.url.removeprefix("http://"))
    (tmp_path / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{block}")
    command = [path, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
    environment = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with (tmp_path / "caddy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        address = f"http://127.0.0.1:{port}{prefix}"
        wait_until(lambda: answers(f"{address}/livez"), 20, (tmp_path / "caddy.log").read_text())
        with httpx2.stream("POST", address + GENERATIONS, json=BODY, timeout=60) as answer:
            assert answer.read().endswith(b"data: [DONE]\n\n")
        page = httpx2.get(f"{address}/", timeout=10)
        assert (page.status_code, "sdstream" in page.text) == (200, True)
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    """Return True if a request gets status 200."""
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def known_variable(name: str) -> bool:
    """Return True if a variable belongs to a setting."""
    return name.removeprefix("SDSTREAM_").lower() in Settings.model_fields


def grace_seconds() -> float:
    """The default grace time."""
    return float(Settings.model_fields["grace_seconds"].default)


def test_kubernetes() -> None:
    """The manifest's variables are settings, its probes are routes, its pod outlives the server."""
    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
    assert [one["kind"] for one in documents] == ["Deployment", "Service", "PersistentVolumeClaim"]
    pod: dict[str, Any] = documents[0]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > grace_seconds()
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert [one["name"] for one in container["env"] if not known_variable(one["name"])] == []
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")}
    assert probes == {"/livez", "/readyz"}


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse arguments of ``sdstream`` and return the command's name and parameters.

    Raises UsageError.
    """
    command: click.Command = main
    context = click.Context(command)
    while isinstance(command, click.Group):
        _, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
    return str(command.name), command.make_context(command.name, [*arguments]).params


def test_kubernetes_cluster() -> None:
    """Arguments are valid, variables are settings, and each pod outlives the programs in it."""
    text = (ROOT / "deploy/kubernetes-cluster.yaml").read_text()
    cluster, fronts, service = yaml.safe_load(text)["items"]
    assert [one["kind"] for one in (cluster, fronts, service)] == [
        "RayCluster",
        "Deployment",
        "Service",
    ]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    pods = {
        "head": cluster["spec"]["headGroupSpec"]["template"]["spec"],
        "join": group["template"]["spec"],
        "serve": fronts["spec"]["template"]["spec"],
    }
    assert service["spec"]["selector"] == fronts["spec"]["selector"]["matchLabels"]
    ends: dict[str, float] = {}
    for name, pod in pods.items():
        assert pod["enableServiceLinks"] is False
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (*pod["initContainers"], *pod["containers"]):
            assert {one["name"] for one in container["volumeMounts"]} <= volumes
            names = [one["name"] for one in container.get("env", [])]
            assert [one for one in names if not known_variable(one)] == []
            if container["name"] == "token":
                continue
            command, values = parsed(container["args"])
            assert command in (name, "join")
            if command == "join":
                assert values["address"] == f"{cluster['metadata']['name']}-head-svc:6379"
            grace = grace_seconds() if command == "serve" else values.get("grace_seconds", 0)
            # The sidecar of a front is stopped after the front.
            ends[name] = ends.get(name, 0) + grace + (command != "serve") * node._END_SECONDS
        assert pod["terminationGracePeriodSeconds"] > ends[name]
    assert ends == {"head": 30, "join": 330, "serve": 50}
    (front,) = pods["serve"]["containers"]
    assert parsed(front["args"])[1]["standby"] is True
    probes = {kind: front[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")}
    assert probes == {"startup": "/livez", "readiness": "/readyz"}


def test_compose() -> None:
    """The Compose file's variables are settings, and its container outlives the server."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["sdstream"]
    assert [name for name in service["environment"] if not known_variable(name)] == []
    assert float(service["stop_grace_period"].removesuffix("s")) > grace_seconds()


def test_variables_of_the_image() -> None:
    """The Dockerfile's variables are settings."""
    names = re.findall(r"\b(SDSTREAM_\w+)=", (ROOT / "Dockerfile").read_text())
    assert names
    assert [name for name in names if not known_variable(name)] == []


def test_alerts_name_metrics() -> None:
    """Each metric in the alert rules is a metric of the server."""
    text = (ROOT / "deploy/alerts.yaml").read_text()
    known = {name for name, *_ in Metrics().described}
    assert [name for name in re.findall(r"\bsdstream_\w+", text) if name not in known] == []


def dashboard() -> dict[str, Any]:
    """Load Grafana's dashboard."""
    found: dict[str, Any] = json.loads((ROOT / "deploy/grafana.json").read_text())
    return found


def queries() -> list[str]:
    """Return the dashboard's queries with Grafana's variables replaced."""
    exprs = [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", ())]
    return [e.replace("$__rate_interval", "5m").replace("$instance", ".*") for e in exprs]


def test_the_dashboard_names_metrics_of_a_server(fake_server: ServerProcess) -> None:
    """Each metric in a query exists in /metrics and has the labels that the query uses."""
    text = httpx2.get(f"{fake_server.url}/metrics", timeout=10).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels = {name: set(found) for name, _, found, _ in Metrics().described}
    variables = [v["definition"] for v in dashboard()["templating"]["list"] if "definition" in v]
    assert len(queries()) > 20
    for query in [*queries(), *variables]:
        asked = {*re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query)}
        asked |= {w for by in re.findall(r"by \(([^)]*)\)", query) for w in by.split(", ")}
        asked |= set(re.findall(r"^label_values\(\w+, (\w+)\)$", query))
        names = set(re.findall(r"\bsdstream_\w+", query))
        assert names, query
        for name in names:
            base = re.sub(r"_(?:bucket|sum|count)$", "", name)
            known = {"instance", *labels[base]} | ({"le"} if name.endswith("_bucket") else set())
            assert base in kinds, query
            assert (kinds[base] == "histogram") == (base != name), query
            assert asked <= known, query


def test_the_dashboard_is_one_of_grafana() -> None:
    """The dashboard has the fields of Grafana's classic model.

    Its panels have unique ids and do not overlap.
    """
    found = dashboard()
    assert {"uid", "title", "schemaVersion", "time", "templating", "annotations"} <= found.keys()
    assert found["id"] is None
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert {"type", "title", "gridPos"} <= panel.keys()
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
        if panel["type"] != "row":
            assert {"datasource", "targets", "fieldConfig", "options"} <= panel.keys()
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs) > 0
    names = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == names


def test_promtool_reads_the_queries(tmp_path: Path) -> None:
    """Each query of the dashboard is valid PromQL, checked as a recording rule."""
    rules = [
        {"record": f"query:{n}", "expr": q.replace("$model", ".*")} for n, q in enumerate(queries())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [program("promtool", "prometheus"), "check", "rules", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout


@pytest.mark.parametrize("what", [["rules", "alerts.yaml"], ["config", "prometheus.yaml"]])
def test_promtool(what: list[str]) -> None:
    """promtool accepts the alert rules and the Prometheus configuration."""
    kind, name = what
    command = [program("promtool", "prometheus"), "check", kind, str(ROOT / "deploy" / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_metrics_follow_the_conventions(fake_server: ServerProcess) -> None:
    """``promtool check metrics`` reports nothing, and the server sends no ``_created`` samples."""
    fake_server.post({"prompt": "a", "steps": 1})
    text = httpx2.get(f"{fake_server.url}/metrics", timeout=10).text
    assert "_created" not in text
    command = [program("promtool", "prometheus"), "check", "metrics"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_json_lines_and_traces(tmp_path: Path) -> None:
    """Log lines are JSON objects with a request's fields; a valid traceparent is continued."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "Authorization": "Bearer one"}
    settings: dict[str, Any] = {"engine": "fake", "log_format": "json", "api_keys": "one"}
    with running_server(tmp_path, **settings) as server:
        answer = server.post({"prompt": "a", "steps": 1}, headers=headers)
        assert answer.headers["traceparent"].startswith(f"00-{trace}-")
        assert not answer.headers["traceparent"].endswith("00f067aa0ba902b7-01")
        httpx2.get(f"{server.url}/static/style.css", timeout=10)
        bad = server.post({"prompt": "a"}, headers={**headers, "traceparent": "00-0-0-01"})
        assert "traceparent" not in bad.headers
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    requests = [line for line in lines if line["logger"] == "sdstream.requests"]
    first = requests[0]
    assert (first["trace"], first["status"], first["client"]) == (trace, 200, "127.0.0.1")
    assert first["model"] == "embedded"
    assert len(first["key"]) == 8
    assert not [line for line in requests if line["path"] in ("/readyz", "/static/style.css")]
    assert "one" not in first["key"]


def test_errors_are_counted_by_reason(fake_server: ServerProcess) -> None:
    """Errors are counted by the reason in the answer."""
    before = fake_server.metric("sdstream_http_errors_total", reason="missing_field")
    fake_server.post({})
    after = fake_server.metric("sdstream_http_errors_total", reason="missing_field")
    assert after == before + 1
