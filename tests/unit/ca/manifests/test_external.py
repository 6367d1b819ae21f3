"""ServiceEntry, and Services of type ExternalName, as values."""

from typing import Any

import pytest
import yaml

from ca.manifests import ExternalEndpoint, ExternalPort, ExternalService, ManifestError, parse_manifests
from ca.manifests.external import EndpointPort, is_ip


def _entry(**spec: Any) -> str:
    whole = {"hosts": ["api.example.com"], "ports": [{"number": 443, "name": "tls"}], "resolution": "DNS"} | spec
    return yaml.safe_dump(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": "api", "namespace": "shop", "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {key: value for key, value in whole.items() if value is not None},
        }
    )


def _external_name(**spec: Any) -> str:
    whole = {"type": "ExternalName", "externalName": "db.example.com", "ports": [{"port": 5432}]} | spec
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": whole})


def _only(text: str) -> ExternalService:
    (found,) = parse_manifests(text, origin="x.yaml").objects
    assert isinstance(found, ExternalService)
    return found


def _skipped(text: str) -> str:
    parsed = parse_manifests(text, origin="x.yaml")
    assert parsed.objects == ()
    return parsed.skipped[0]


def _refusal(text: str) -> str:
    with pytest.raises(ManifestError) as refused:
        parse_manifests(text, origin="x.yaml")
    return str(refused.value)


def test_a_service_entry_by_dns() -> None:
    found = _only(
        _entry(
            hosts=["API.example.com.", "b.example.com"],
            ports=[
                {"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443},
                {"number": 80, "name": "http", "protocol": "HTTP"},
                {"number": 53, "name": "dns", "protocol": "UDP"},
            ],
            location="MESH_EXTERNAL",
            exportTo=["*"],
        )
    )
    assert found == ExternalService(
        kind="ServiceEntry",
        namespace="shop",
        name="api",
        created="2026-01-02T03:04:05+00:00",
        hosts=("api.example.com", "b.example.com"),
        ports=(ExternalPort("tls", 443, 8443), ExternalPort("http", 80, 80)),
    )
    assert str(found.key) == "ServiceEntry shop/api"
    assert found.names == {"api.example.com", "b.example.com"}


def test_a_static_service_entry_resolves_nothing_and_may_have_any_hosts() -> None:
    found = _only(
        _entry(
            hosts=["*.example.com"],
            resolution="STATIC",
            addresses=["10.249.0.7", "FD00:0::7"],
            endpoints=[{"address": "192.0.2.1", "ports": {"tls": 8443}}, {"address": "2001:db8::1"}],
        )
    )
    assert found.names == frozenset()
    assert found.addresses == ("10.249.0.7", "fd00::7")
    assert found.endpoints == (
        ExternalEndpoint("192.0.2.1", (EndpointPort("tls", 8443),)),
        ExternalEndpoint("2001:db8::1"),
    )


def test_endpoints_by_dns_may_be_names_and_addresses() -> None:
    found = _only(_entry(endpoints=[{"address": "eu.example.com"}, {"address": "192.0.2.1"}]))
    assert found.names == {"api.example.com", "eu.example.com"}
    assert [is_ip(each.host) for each in found.endpoints] == [False, True]


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_every_version_of_istios_is_read(version: str) -> None:
    assert _only(_entry().replace("istio.io/v1", f"istio.io/{version}")).name == "api"


def test_an_external_name_is_a_service_outside() -> None:
    found = _only(_external_name())
    assert str(found.key) == "Service default/db"
    assert found.hosts == ("db.example.com",)
    assert found.ports == (ExternalPort("", 5432, 5432),)


def test_an_external_name_without_ports_is_skipped_and_says_what_to_add() -> None:
    assert "has no ports; add those at which it may be reached" in _skipped(_external_name(ports=[]))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"resolution": None}, "is of resolution NONE"),
        ({"resolution": "DNS_ROUND_ROBIN"}, "is of resolution DNS_ROUND_ROBIN"),
        ({"location": "MESH_INTERNAL"}, "is of location MESH_INTERNAL"),
        ({"workloadSelector": {"labels": {"app": "x"}}}, "has a workloadSelector"),
        ({"exportTo": ["."]}, "has an exportTo"),
    ],
)
def test_what_is_not_served_is_skipped_and_reported(spec: dict[str, Any], said: str) -> None:
    assert said in _skipped(_entry(**spec))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"hosts": []}, "spec.hosts: must hold 1 to 256 hosts, not 0"),
        ({"hosts": ["*.example.com"]}, "spec.hosts[0]: a wildcard can not be resolved, '*.example.com'; write each"),
        ({"hosts": ["192.0.2.1"]}, "spec.hosts[0]: must be a DNS name"),
        ({"hosts": ["a b"]}, "spec.hosts[0]: must be a DNS name"),
        ({"hosts": ["a..b"]}, "spec.hosts[0]: must be a DNS name"),
        ({"hosts": ["a" * 64 + ".example"]}, "spec.hosts[0]: must be a DNS name"),
        ({"hosts": [""]}, "spec.hosts[0]: must be a DNS name"),
        ({"hosts": ["host.1"]}, "spec.hosts[0]: must be a DNS name"),
        ({"ports": []}, "spec.ports: is missing or has no TCP port"),
        ({"ports": [{"number": 443}, {"number": 443}]}, "spec.ports: the same TCP port appears twice"),
        ({"ports": [{"number": 0}]}, "spec.ports[0].number: must be a port number"),
        ({"addresses": ["10.0.0.0/8"]}, "spec.addresses[0]: must be an IP address"),
        ({"addresses": ["127.0.0.1"]}, "spec.addresses[0]: must not be unspecified, loopback"),
        (
            {"hosts": ["a.example", "b.example"], "addresses": ["192.0.2.1"]},
            "spec.addresses: do not tell the hosts apart; write one ServiceEntry for each host",
        ),
        ({"resolution": "STATIC"}, "spec.endpoints: is missing; resolution STATIC needs at least one"),
        (
            {"resolution": "STATIC", "endpoints": [{"address": "eu.example.com"}]},
            "spec.endpoints[0].address: must be an IP address",
        ),
        ({"endpoints": [{"address": "169.254.169.254"}]}, "spec.endpoints[0].address: must not be"),
        ({"endpoints": [{"address": "unix:///x"}]}, "spec.endpoints[0].address: must be a DNS name"),
        (
            {"endpoints": [{"address": "192.0.2.1", "ports": {"http": 80}}]},
            "spec.endpoints[0].ports.http: is the name of no port in spec.ports",
        ),
        ({"resolution": "ANY"}, "spec.resolution: must be one of"),
    ],
)
def test_mistakes_are_named_where_they_are(spec: dict[str, Any], said: str) -> None:
    assert said in _refusal(_entry(**spec))


def test_an_external_name_must_be_a_name() -> None:
    assert "spec.externalName: must be a DNS name" in _refusal(_external_name(externalName="192.0.2.1"))


def test_names_that_end_in_digits_are_not_addresses() -> None:
    assert _only(_external_name(externalName="db2")).names == {"db2"}
