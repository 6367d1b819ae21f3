"""What ships in deploy/ for Prometheus and Grafana names what exists, and its own unit tests pass.

tests/mesh/test_prometheus.py runs every expression against a lab.
"""

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = ROOT / "deploy/prometheus"
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "deploy/grafana/ringfence.json").read_text())
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: Final = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DOCUMENTED: Final = set(re.findall(r"`((?:ringfence|istio_tcp)_[a-z_]+)`", (ROOT / "docs/metrics.md").read_text()))
EXPRESSIONS: Final = {
    **{f"panel {panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
    **{f"alert {rule['alert']}": rule["expr"] for rule in RULES},
    **{
        f"variable {variable['name']}": variable["query"]["query"]
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    },
}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_asks_for_metrics_that_exist(where: str) -> None:
    asked = set(re.findall(r"\b(?:ringfence|istio_tcp)_[a-z_]+(?=[\[{,) ])", EXPRESSIONS[where]))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in DOCUMENTED else name for name in asked}
    assert families <= DOCUMENTED
    assert families or "up" in EXPRESSIONS[where]


@pytest.mark.parametrize(
    "command",
    [("check", "rules", "alerts.yaml"), ("check", "config", "scrape.yaml"), ("test", "rules", "alerts.test.yaml")],
    ids=" ".join,
)
def test_promtool_is_content(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_every_alert_has_a_unit_test_of_its_own_that_makes_it_fire() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]
    fired = {
        test["name"]
        for test in tests
        for one in test.get("promql_expr_test", ())
        for sample in one.get("exp_samples", ())
        if sample["labels"] == f'{{alertname="{test["name"]}"}}' and sample["value"] == 1
    }
    assert fired == {rule["alert"] for rule in RULES}


def test_every_alert_says_how_bad_it_is_and_leads_to_its_runbook() -> None:
    sections = re.findall(r"^### (\w+)\n\n(.+)", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE)
    assert [name for name, _ in sections] == [rule["alert"] for rule in RULES]
    begins = {"critical": "Critical. ", "warning": "", "info": "Info. "}
    for rule, (name, text) in zip(RULES, sections, strict=True):
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        begin = begins[rule["labels"]["severity"]]
        assert text.startswith(begin or tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")), name
        assert begin or not text.startswith(("Critical.", "Info.")), name


def test_the_dashboard_is_one_that_grafana_lays_out_as_it_is_written() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(panel["title"], panel["gridPos"]) for panel in DASHBOARD["panels"]]
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one} and {other} overlap"
    assert all(place["x"] + place["w"] <= 24 for _, place in places)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']} {panel['title']}")
def test_a_panel_explains_itself_and_asks_the_data_source_that_was_chosen(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith((".", "docs"))
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert set(re.findall(r"\$(\w+)", target["expr"])) <= known
        assert "job=" in target["expr"], "of this job only: there may be other meshes"
