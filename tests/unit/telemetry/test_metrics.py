"""The text is what Prometheus reads: the official library parses it back."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.spiffe import SpiffeId
from node_agent.model import ObjectName, Workload
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.metrics import QUICK_S, Metrics
from node_agent.telemetry.process_metrics import register_process_metrics
from node_agent.telemetry.response_flags import ResponseFlag
from node_agent.telemetry.traffic import LABELS, Traffic, TrafficKey, label_values, owner_name
from tests.metrics_text import parsed

NOWHERE = TrafficKey(
    reporter="source",
    source=None,
    source_identity=None,
    destination=None,
    destination_identity=None,
    service=None,
    security="none",
)


def pod(name: str, **labels: str) -> Workload:
    return Workload(
        uid=f"uid-{name}",
        name=ObjectName("shop", name),
        service_account="default",
        node="n1",
        addresses=(),
        identity=SpiffeId.workload("cluster.local", "shop", "default"),
        enrolled=True,
        labels=labels,
    )


@given(st.text(), st.text(), st.floats() | st.integers(min_value=0, max_value=2**53))
def test_any_label_value_and_number_comes_back_from_the_official_parser(one: str, two: str, value: float) -> None:
    metrics = Metrics()
    metrics.gauge("ringfence_test", 'help with \\ and " and \n', lambda: {(one, two): value}, labels=("one", "two"))

    [((found_one, found_two), found)] = parsed(metrics)["ringfence_test"].items()

    assert (found_one, found_two) == (one, two)
    assert found == value or (found != found and value != value)  # noqa: PLR0124


def test_a_reading_that_fails_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    metrics.gauge("ringfence_bad", "Fails.", lambda: 1 / 0)
    metrics.gauge("ringfence_good", "Works.", lambda: True)

    first, second = parsed(metrics), parsed(metrics)

    assert "ringfence_bad" not in first
    assert first["ringfence_good"] == {(): 1}
    assert second["ringfence_metric_read_failures_total"] == {(): 1}
    assert "ringfence_bad" in caplog.text


def test_a_name_that_is_taken_or_wrong_is_a_bug() -> None:
    metrics = Metrics()
    metrics.gauge("ringfence_x", "X.", lambda: 1)
    with pytest.raises(ValueError, match="twice"):
        metrics.gauge("ringfence_x", "X.", lambda: 1)
    with pytest.raises(ValueError, match="_total"):
        metrics.counter("ringfence_y", "Y.", lambda: 1)
    with pytest.raises(ValueError, match="not a metric name"):
        metrics.gauge("ringfence y", "Y.", lambda: 1)


def test_the_agent_shows_what_it_costs() -> None:
    metrics = Metrics()
    register_process_metrics(metrics, version="1.2.3", wall=lambda: 1_700_000_000.5)

    found = parsed(metrics)

    assert found["ringfence_build_info"] == {("1.2.3",): 1}
    assert 1_000_000 < found["ringfence_process_resident_memory_bytes"][()] < 10**12
    assert found["ringfence_process_cpu_seconds_total"][()] > 0
    assert found["ringfence_process_open_fds"][()] >= 3
    assert found["ringfence_process_start_time_seconds"] == {(): 1_700_000_000.5}


def test_the_labels_are_istios() -> None:
    key = NOWHERE._replace(
        source=pod("cart-5f6d-x1", **{"pod-template-hash": "5f6d"}),
        source_identity=SpiffeId.workload("cluster.local", "shop", "cart"),
        service=ObjectName("default", "web"),
        security="mutual_tls",
    )

    assert dict(zip(LABELS, label_values(key, ResponseFlag.DENY), strict=True)) == {
        "reporter": "source",
        "source_workload": "cart",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/cart",
        "destination_workload": "unknown",
        "destination_workload_namespace": "unknown",
        "destination_principal": "unknown",
        "destination_service": "web.default.svc.cluster.local",
        "connection_security_policy": "mutual_tls",
        "response_flags": "DENY",
    }


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (pod("web"), "web"),
        (pod("web-7c9-abc12", **{"pod-template-hash": "7c9"}), "web"),
        (pod("odd", **{"pod-template-hash": "7c9"}), "odd"),
        (pod("db-0", **{"statefulset.kubernetes.io/pod-name": "db-0"}), "db"),
        (pod("nightly-28-x", **{"batch.kubernetes.io/job-name": "nightly-28"}), "nightly-28"),
    ],
)
def test_a_pod_is_counted_under_the_controller_that_made_it(workload: Workload, name: str) -> None:
    assert owner_name(workload) == name


def test_past_the_bound_new_label_sets_are_counted_together() -> None:
    metrics = Metrics()
    traffic = Traffic(metrics, max_label_sets=3)
    for number in range(10):
        traffic.series(NOWHERE._replace(source=pod(f"pod{number}")), ResponseFlag.NONE).opened += 1

    opened = parsed(metrics)["istio_tcp_connections_opened_total"]

    assert len(opened) == 4
    assert sum(opened.values()) == 10
    assert [value for labels, value in opened.items() if "other" in labels] == [7]
    assert parsed(metrics)["ringfence_metric_label_sets_overflowed_total"] == {(): 7}


def test_the_access_log_keeps_as_many_label_sets_as_is_configured() -> None:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n1", max_label_sets=2)
    for number in range(4):
        with log.connection("outbound") as record:
            record.note(source=pod(f"pod{number}"))

    closed = parsed(metrics)["istio_tcp_connections_closed_total"]

    assert sorted(closed.values()) == [1, 1, 2]
    assert parsed(metrics)["ringfence_connection_duration_seconds_count"] == {("inbound",): 0, ("outbound",): 4}
    assert parsed(metrics)["ringfence_connect_duration_seconds_count"] == {("inbound",): 0, ("outbound",): 0}


def test_only_what_got_through_has_a_time_to_connect() -> None:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n1")
    with log.connection("inbound") as record:
        record.connect_ms = 3.0
        record.opened()
        record.opened()

    assert parsed(metrics)["ringfence_connect_duration_seconds_count"] == {("inbound",): 1, ("outbound",): 0}
    assert parsed(metrics)["ringfence_connect_duration_seconds_sum"]["inbound",] == pytest.approx(0.003)


def test_replaced_pods_of_a_controller_share_their_counters_and_cost_no_memory() -> None:
    traffic = Traffic(Metrics())

    def churn(count: int) -> None:
        for number in range(count):
            name = f"web-7c9-{number}"
            key = NOWHERE._replace(source=pod(name, **{"pod-template-hash": "7c9"}))
            traffic.series(key, ResponseFlag.NONE).opened += 1

    tracemalloc.start()
    try:
        churn(25_000)
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert held_bytes < 5 * 1024 * 1024


def test_a_histogram_counts_each_observation_under_its_bounds() -> None:
    metrics = Metrics()
    made = metrics.histogram("ringfence_took_seconds", "Took.", bounds=(0.1, 1.0), labels={"way": ("in", "out")})
    for seconds in (0.05, 0.1, 0.5, 3.0):
        made.of("in").observe(seconds)

    found = parsed(metrics)

    assert found["ringfence_took_seconds_bucket"] == {
        ("0.1", "in"): 2,  # a bound belongs to its bucket
        ("1.0", "in"): 3,
        ("+Inf", "in"): 4,
        ("0.1", "out"): 0,
        ("1.0", "out"): 0,
        ("+Inf", "out"): 0,
    }
    assert found["ringfence_took_seconds_count"] == {("in",): 4, ("out",): 0}
    assert found["ringfence_took_seconds_sum"] == {("in",): pytest.approx(3.65), ("out",): 0}


def test_the_labels_of_a_histogram_are_a_closed_set() -> None:
    made = Metrics().histogram("ringfence_took_seconds", "Took.", bounds=(0.1,), labels={"way": ("in", "out")})
    with pytest.raises(KeyError):
        made.of("sideways")


@pytest.mark.parametrize("bounds", [(), (1.0, 0.1), (0.1, 0.1)])
def test_bounds_that_do_not_rise_are_a_bug(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Metrics().histogram("ringfence_took_seconds", "Took.", bounds=bounds)


@given(st.lists(st.floats(min_value=0, max_value=20_000)))
def test_a_histogram_agrees_with_counting_by_hand(observed: list[float]) -> None:
    metrics = Metrics()
    histogram = metrics.histogram("ringfence_took_seconds", "Took.", bounds=QUICK_S).of()
    for seconds in observed:
        histogram.observe(seconds)

    assert parsed(metrics)["ringfence_took_seconds_bucket"] == {
        **{(repr(bound),): sum(seconds <= bound for seconds in observed) for bound in QUICK_S},
        ("+Inf",): len(observed),
    }


def test_what_has_to_be_brought_up_to_date_is_so_once_a_scrape_in_steps_or_at_once() -> None:
    metrics, looks = Metrics(), [0]

    def look() -> Iterator[None]:
        yield
        looks[0] += 1

    metrics.before_scrape(look)
    metrics.gauge("ringfence_looks", "Looks.", lambda: looks[0])
    assert len(list(metrics.steps())) == 1
    assert parsed(metrics)["ringfence_looks"] == {(): 1}
    assert parsed(metrics)["ringfence_looks"] == {(): 2}
