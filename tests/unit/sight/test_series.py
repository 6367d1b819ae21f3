"""Counters of Prometheus become edges of the picture."""

from node_agent.sight.series import EdgeCount, EdgeKey, edges_of
from node_agent.telemetry.metrics import FamilyReading, Sample
from node_agent.telemetry.traffic import LABELS

_VALUES = {
    "reporter": "source",
    "source_workload": "cart",
    "source_workload_namespace": "shop",
    "source_principal": "spiffe://cluster.local/ns/shop/sa/cart",
    "destination_workload": "web",
    "destination_workload_namespace": "shop",
    "destination_principal": "spiffe://cluster.local/ns/shop/sa/web",
    "destination_service": "web.shop.svc.cluster.local",
    "connection_security_policy": "mutual_tls",
    "response_flags": "-",
}


def _family(name: str, *samples: tuple[float, dict[str, str]]) -> FamilyReading:
    return FamilyReading(
        name=name,
        kind="counter",
        help_text="",
        labels=LABELS,
        merge="sum",
        samples=[Sample(tuple((_VALUES | changes)[label] for label in LABELS), value) for value, changes in samples],
    )


def test_thousands_of_label_sets_are_counted_in_steps() -> None:
    samples = [(1.0, {"source_workload": f"cart-{number}"}) for number in range(1000)]
    count = EdgeCount()

    assert len(list(count.take([_family("istio_tcp_connections_opened_total", *samples)]))) == 1000 // 128
    assert len(count.edges) == 1000


def test_label_sets_that_differ_in_how_it_ended_are_one_edge() -> None:
    found = edges_of(
        [
            _family("istio_tcp_connections_opened_total", (7, {})),
            _family("istio_tcp_connections_closed_total", (4, {}), (2, {"response_flags": "DENY"})),
            _family("istio_tcp_sent_bytes_total", (100, {}), (1, {"response_flags": "DENY"})),
            _family("istio_tcp_received_bytes_total", (50, {})),
            _family("ringfence_other_total", (1, {})),
        ]
    )

    (key,) = found
    assert key == EdgeKey(
        reporter="source",
        source="shop/cart",
        source_identity="spiffe://cluster.local/ns/shop/sa/cart",
        destination="shop/web",
        destination_identity="spiffe://cluster.local/ns/shop/sa/web",
        service="shop/web",
        security="mutual_tls",
    )
    edge = found[key]
    assert (edge.opened, edge.closed, edge.sent_bytes, edge.received_bytes) == (7, 6, 101, 50)
    assert edge.flags == {"-": 4, "DENY": 2}


def test_what_is_unknown_is_none() -> None:
    unknown = dict.fromkeys(
        ("source_workload", "source_principal", "destination_workload", "destination_service"), "unknown"
    )
    (key,) = edges_of([_family("istio_tcp_connections_opened_total", (1, unknown))])

    assert (key.source, key.source_identity, key.destination, key.service) == (None, None, None, None)


def test_the_name_of_a_place_outside_may_have_dots() -> None:
    changes = {"destination_service": "api.example.com.shop.svc.cluster.local"}
    (key,) = edges_of([_family("istio_tcp_connections_opened_total", (1, changes))])

    assert key.service == "shop/api.example.com"
