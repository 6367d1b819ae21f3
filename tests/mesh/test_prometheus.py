"""What ships in deploy/ for Prometheus and Grafana, against a real Prometheus that scrapes the lab."""

import http
import json
import re
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.mesh_builder import ROOT, WORKERS, Mesh, Pod, in_namespace, read_all, wait_for

pytestmark = pytest.mark.mesh

_AGENTS: Final = ["10.247.0.11:15020", "10.247.0.12:15020"]
_CA: Final = "10.247.0.10:15020"
_ADDRESS: Final = "10.247.0.11:9090"
_VARIABLES: Final = {
    "$__rate_interval": "10s",
    "$ca_job": "ringfence-ca",
    "$job": "ringfence-agent",
    "$instance": ".*",
    "$namespace": ".*",
    "$service": ".*",
}
_NOT_IN_THIS_LAB: Final = frozenset(
    {
        "ringfence_ca_federation_failed_polls",  # one trust domain
        "ringfence_ca_over_limit_total",  # nobody asks for too much
        "ringfence_health_checks_total",  # no TrafficPolicy
        "ringfence_otlp_records_dropped_total",  # no collector
        "ringfence_spans_dropped_total",
        *(() if int(WORKERS) > 1 else ("ringfence_worker_crashes_total",)),
    }
)
_DOCUMENTED: Final = set(re.findall(r"`((?:ringfence|istio_tcp)_[a-z_]+)`", (ROOT / "docs/metrics.md").read_text()))
_POLICIES: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin-of-scraped}
spec: {selector: {matchLabels: {app: scraped}}, action: DENY, rules: [{to: [{operation: {ports: ["9000"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: on-trial, annotations: {"istio.io/dry-run": "true"}}
spec: {selector: {matchLabels: {app: scraped}}, action: DENY, rules: [{to: [{operation: {ports: ["8080"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: scraped-is-watched}
spec: {selector: {matchLabels: {app: scraped}}, action: AUDIT, rules: [{to: [{operation: {ports: ["8080"]}}]}]}
"""


class Prometheus:
    """A real one, in the network namespace of node 1: ``lab down`` ends it, too, should we be killed."""

    def __init__(self, mesh: Mesh, directory: Path) -> None:
        self._netns = mesh.node_netns(1)
        config = yaml.safe_load((ROOT / "deploy/prometheus/scrape.yaml").read_text())
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in config["rule_files"]]
        targets = {"ringfence-agent": _AGENTS, "ringfence-ca": [_CA]}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
        assert not targets
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [
            "prometheus",
            f"--config.file={directory}/prometheus.yaml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={_ADDRESS}",
            "--log.level=warn",
        ]
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = in_namespace(
                self._netns, lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, path: str, **fields: str) -> Any:
        """The ``data`` of an answer of the HTTP API; None while it does not answer."""
        url = f"http://{_ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(fields)}"

        def get() -> bytes | None:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    body: bytes | None = answer.read()
            except urllib.error.HTTPError as refusal:
                body = refusal.read() if refusal.code != http.HTTPStatus.SERVICE_UNAVAILABLE else None  # it starts
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                return None
            return body

        body = in_namespace(self._netns, get)
        if body is None:
            return None
        answer = json.loads(body)
        assert answer["status"] == "success", f"{fields}: {answer['error']}"
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The series that an expression gives now, and their values."""
        found = self.ask("query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in found["result"]] if found else []


def _dashboard_queries() -> Iterator[tuple[str, str]]:
    """Title of the panel, and each of its expressions with the variables filled in."""
    dashboard = json.loads((ROOT / "deploy/grafana/ringfence.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, expression
            yield panel["title"], expression


def _families(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ringfence|istio_tcp)_[a-z_]+", expression))


def _alert_expressions() -> list[str]:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


class Traffic:
    """Connections to the echo until the end of the block, and each time one that fails and one that is denied."""

    def __init__(self, client: Pod, service: str) -> None:
        self._client, self._service = client, service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.served = self.denied = 0

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            with self._client.connect(self._service, 80) as connection:
                connection.sendall(b"hello")
                connection.shutdown(1)
                if read_all(connection) == b"hello":
                    self.served += 1
            self._fail(81)
            self._fail(82)
            self.denied += 1

    def _fail(self, port: int) -> None:
        try:
            with self._client.connect(self._service, port) as connection:
                read_all(connection)
        except OSError:
            pass


def test_prometheus_scrapes_the_lab_and_every_panel_and_alert_finds_its_series(mesh: Mesh, tmp_path: Path) -> None:
    web = mesh.pod("scraped", node=2, labels={"app": "scraped"})  # a name of its own: counters of the lab live on
    web.serve_echo(8080)
    reads = threading.Event()

    def read_late(connection: socket.socket, _peer: str) -> None:
        reads.wait(60)
        read_all(connection)

    web.serve(8083, read_late)
    client = mesh.pod("client", node=1)
    mesh.apply(_POLICIES)
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: scraped}\nspec:\n  selector: {app: scraped}\n  ports:\n"
        "    - {name: echo, port: 80, targetPort: 8080}\n    - {name: nobody, port: 81, targetPort: 8081}\n"
        "    - {name: admin, port: 82, targetPort: 9000}\n    - {name: late, port: 83, targetPort: 8083}\n"
    )
    service = next(row["cluster_ips"][0] for row in mesh.ringfence(1, "services") if row["name"] == "scraped")
    with client.connect(service, 80) as idle, Prometheus(mesh, tmp_path) as prometheus:
        with Traffic(client, service) as traffic:
            wait_for("all three targets to be up", lambda: sum(value for _, value in prometheus.query("up")) == 3)
            assert {labels["job"] for labels, _ in prometheus.query("up == 1")} == {"ringfence-agent", "ringfence-ca"}

            for title, expression in _dashboard_queries():
                if not _families(expression) & _NOT_IN_THIS_LAB:
                    wait_for(f"{title}: {expression}", lambda: prometheus.query(expression))  # noqa: B023
                else:
                    prometheus.query(expression)  # valid at least

            def judged() -> bool:
                rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
                assert not [rule for rule in rules if rule.get("lastError")], rules
                return len(rules) == len(_alert_expressions()) and all(rule["health"] == "ok" for rule in rules)

            wait_for("every alert to be judged", judged)
            for family in sorted(set().union(*map(_families, _alert_expressions())) - _NOT_IN_THIS_LAB):
                wait_for(f"{family}, which an alert asks for", lambda: prometheus.query(family))  # noqa: B023
            assert prometheus.query('ALERTS{severity="critical",alertstate="firing"}') == []

            names = {
                name for name in prometheus.ask("label/__name__/values") if name.startswith(("ringfence", "istio"))
            }
            families = {re.sub(r"(?<=_seconds)_(bucket|sum|count)$", "", name) for name in names}
            assert families <= _DOCUMENTED

        # What Prometheus has is what happened.  On a busy machine a scrape may fail: then the series are gone for one.
        ended = traffic.served

        def counted(what: str, expression: str, is_right: Callable[[float], bool]) -> None:
            wait_for(what, lambda: (found := prometheus.query(expression)) and is_right(sum(v for _, v in found)))

        for reporter, agent in zip(("source", "destination"), _AGENTS, strict=True):
            traffic_of = f'{{destination_workload="scraped",response_flags="-",reporter="{reporter}"}}'
            counted("ends", f"istio_tcp_connections_closed_total{traffic_of}", lambda total: total == ended)
            counted("idle one", f"istio_tcp_connections_opened_total{traffic_of}", lambda total: total == ended + 1)
            of_agent = f'_duration_seconds_count{{instance="{agent}"}}'
            counted("connects", f"ringfence_connect{of_agent}", lambda total: total >= ended + 1)
            counted("handshakes", f"ringfence_tunnel_handshake{of_agent}", lambda total: total >= 1)
        counted("that nothing is held back", "ringfence_relay_held_bytes", lambda total: total == 0)
        counted("a tunnel", f'ringfence_tunnels_busy{{instance="{_AGENTS[0]}"}}', lambda total: total == 1)
        # Each is decided once, at whichever end.
        denials = 'ringfence_policy_denials_total{policy="default/no-admin-of-scraped"}'
        counted("denials", denials, lambda total: total == traffic.denied > 0)
        assert len(mesh.records(1, close_reason="policy_denied")) == traffic.denied
        audits = 'ringfence_policy_audits_total{policy="default/scraped-is-watched"}'
        counted("audits", audits, lambda total: total >= ended)
        idle.sendall(b"x")
        assert idle.recv(1) == b"x"

        # A program that does not read: what waits for it is seen, until it reads.
        with client.connect(service, 83, timeout_s=1.0) as unread:
            with pytest.raises(TimeoutError):
                unread.sendall(bytes(256 << 20))
            counted("bytes that are held back", "ringfence_relay_held_bytes", lambda total: total > 0)
            counted("at one agent or at both", "ringfence_relay_blocked_connections", lambda total: total in {1, 2})
            counted("bytes on their way", "ringfence_relay_send_queue_bytes", lambda total: total > 0)
            reads.set()
            counted("that all are read", "ringfence_relay_held_bytes", lambda total: total == 0)
