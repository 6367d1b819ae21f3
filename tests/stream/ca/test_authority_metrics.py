"""What Prometheus sees of a serving authority."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import h11
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from ca.authority import metrics as metrics_module
from ca.authority.errors import AuthorityError
from ca.authority.federation.relation import EndpointUrl, Profile, Relation
from ca.authority.limits import LimitSettings
from ca.authority.store import Store
from ca.errors import CaRefused
from tests.authority_builder import Authority, connected, make_authority, serving, sign, tcp, workload

ROOT = Path(__file__).parents[3]


@pytest.fixture
def authority(tmp_path: Path, unused_port: int) -> Authority:
    made = make_authority(tmp_path)
    config = replace(
        made.config, metrics_address=("127.0.0.1", unused_port), limits=LimitSettings(node_requests_a_minute=8)
    )
    return replace(made, config=config)


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


async def page(authority: Authority) -> str:
    """What a scrape gets."""
    assert authority.config.metrics_address is not None
    client = h11.Connection(h11.CLIENT)
    body = b""
    async with tcp(authority.config.metrics_address[1]) as stream:
        await stream.send_all(
            client.send(h11.Request(method="GET", target="/metrics", headers=[("Host", "ca")]))
            + client.send(h11.EndOfMessage())
        )
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                client.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Response):
                assert event.status_code == 200
            elif isinstance(event, h11.Data):
                body += event.data
    return body.decode()


async def scraped(authority: Authority) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(await page(authority)):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "key_id")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_the_documentation_lists_exactly_what_is_served(authority: Authority) -> None:
    section = (ROOT / "docs/metrics.md").read_text().split("\n## The certificate authority\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(ringfence_ca_[a-z_]+)`", section, re.MULTILINE))
    async with serving(authority):
        served = set(re.findall(r"^# TYPE (ringfence_ca_[a-z_]+)", await page(authority), re.MULTILINE))
    assert documented == served


async def test_what_was_issued_refused_and_limited_is_counted(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    async with serving(authority) as port:
        client, own = authority.client(port), authority.node_credentials("node-1")
        await sign(client, own, workload("web"), workload("nobody"))
        await sign(client, own, workload("web"))
        with pytest.raises(CaRefused):
            await sign(client, own, workload("web"))
        async with connected(authority, port):
            found = await scraped(authority)

    assert found["ringfence_ca_requests_total{outcome=ok,type=sign_workloads}"] == 2
    assert found["ringfence_ca_requests_total{outcome=rate_limited,type=sign_workloads}"] == 1
    assert found["ringfence_ca_certificates_issued_total{type=sign_workloads}"] == 2
    assert found["ringfence_ca_certificates_refused_total{code=not_scheduled}"] == 1
    assert found["ringfence_ca_over_limit_total{limit=node_requests_a_minute}"] == 1
    assert found["ringfence_ca_request_duration_seconds_count"] == 3
    assert found["ringfence_ca_handshake_duration_seconds_bucket{le=+Inf}"] == 4
    assert found["ringfence_ca_connections_open"] == 1
    assert found["ringfence_ca_requests_waiting"] == 0
    assert 3500 < found["ringfence_ca_server_certificate_expiry_seconds"] <= 3600


async def test_keys_agents_and_the_trust_version_are_shown(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "_LOOK_S", 0.01)
    found: dict[str, float] = {}
    async with serving(authority):
        while "ringfence_ca_signing_key_age_seconds{kind=root,state=active}" not in found:
            found = await scraped(authority)

    year_s = 365 * 86_400
    assert 9 * year_s < found["ringfence_ca_signing_certificate_expiry_seconds{kind=root,state=active}"]
    assert found["ringfence_ca_signing_certificate_expiry_seconds{kind=intermediate,state=active}"] <= year_s
    assert found["ringfence_ca_trust_version"] >= 1
    assert found["ringfence_ca_agents"] == 0
    assert found["ringfence_ca_agents_behind"] == 0
    assert found["process_resident_memory_bytes"] > 10_000_000


async def test_an_address_that_is_taken_is_an_error_that_says_what_to_change(
    authority: Authority, unused_port: int
) -> None:
    with socket.create_server(("127.0.0.1", unused_port)):
        with pytest.raises(AuthorityError, match="metrics_address"):
            await metrics_module.listen_for_metrics(authority.config.metrics_address)


async def test_there_is_none_unless_it_is_wanted() -> None:
    assert await metrics_module.listen_for_metrics(None) == []


def test_the_agent_does_not_load_the_metrics_library() -> None:
    code = "import sys, node_agent.agent, node_agent.cli.main; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_polls_of_federated_trust_domains_that_fail_are_told(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "_LOOK_S", 0.05)
    nobody = Relation(
        trust_domain="other.example",
        url=EndpointUrl("127.0.0.1", 9, "/"),
        profile=Profile.HTTPS_WEB,
        endpoint_id=None,
        added_at=datetime.now(UTC),
    )
    store = Store.open(authority.config.database)
    store.federation.add(nobody, None, check=lambda _: None)
    store.close()
    async with serving(authority):
        with trio.fail_after(30):
            while not (await scraped(authority)).get(
                "ringfence_ca_federation_failed_polls{trust_domain=other.example}"
            ):
                await trio.sleep(0.05)
