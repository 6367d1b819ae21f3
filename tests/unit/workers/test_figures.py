"""Several workers look like one agent, also when one of them ends."""

from node_agent.balance import EndpointLoad
from node_agent.model import EndpointAddress
from node_agent.telemetry.metrics import Metrics, Sample
from node_agent.workers.figures import OPEN, TOTAL, Figures
from node_agent.workers.messages import Count, DebugRow, FamilyRow, LiveRow, LoadRow, SampleRow, Topic
from tests.metrics_text import parsed, text_of

WEB = EndpointAddress("10.1.0.1", 8080)


def counts(opened: int, total: int) -> list[Count]:
    return [Count(name=OPEN, value=opened), Count(name=TOTAL, value=total)]


def family(name: str, kind: str, *, merge: str = "sum", **samples: float) -> FamilyRow:
    rows = tuple(SampleRow(values=(label,), value=value) for label, value in samples.items())
    return FamilyRow(name=name, kind=kind, help_text="Help.", labels=("a",), merge=merge, samples=rows)


def test_counts_are_added_up_and_an_answer_replaces_the_former_one() -> None:
    figures = Figures()
    figures.take(1, Topic.COUNTS, counts(3, 10))
    figures.take(2, Topic.COUNTS, counts(4, 20))
    figures.take(2, Topic.COUNTS, counts(5, 21))
    assert (figures.count(OPEN), figures.count(TOTAL)) == (8, 31)
    assert figures.count(OPEN, worker=2) == 5
    assert figures.count(OPEN, worker=9) == 0


def test_what_workers_lose_is_told_with_who_does_until_they_say_otherwise() -> None:
    figures = Figures()
    figures.take(2, Topic.COUNTS, [*counts(1, 1), DebugRow(text="spans to http://c are being lost: refused")])
    figures.take(1, Topic.COUNTS, counts(1, 1))
    assert figures.problems() == ["spans to http://c are being lost: refused (worker 2)"]
    assert figures.count(OPEN) == 2
    figures.take(2, Topic.COUNTS, counts(1, 1))
    assert figures.problems() == []


def test_what_an_ended_worker_has_counted_stays_and_what_it_held_goes() -> None:
    figures = Figures()
    figures.take(1, Topic.COUNTS, counts(3, 10))
    figures.take(1, Topic.CONNECTIONS, [LiveRow(cells={"id": "x"})])
    figures.ended(1)
    assert (figures.count(OPEN), figures.count(TOTAL)) == (0, 10)
    assert figures.connections() == []
    figures.take(1, Topic.COUNTS, counts(1, 2))  # the one that takes its place counts from nothing
    assert (figures.count(OPEN), figures.count(TOTAL)) == (1, 12)
    figures.ended(7)


def test_each_connection_says_which_worker_holds_it() -> None:
    figures = Figures()
    figures.take(1, Topic.CONNECTIONS, [LiveRow(cells={"id": "x"})])
    figures.take(2, Topic.CONNECTIONS, [LiveRow(cells={"id": "y"}), LiveRow(cells={"id": "z"})])
    assert figures.connections() == [
        {"id": "x", "worker": 1},
        {"id": "y", "worker": 2},
        {"id": "z", "worker": 2},
    ]


def test_the_load_of_an_endpoint_is_that_of_all_workers() -> None:
    figures = Figures()
    for worker, opened, latency_s in ((1, 2, 0.1), (2, 3, None), (3, 4, 0.3)):
        row = LoadRow(
            ip=WEB.ip,
            port=WEB.port,
            uid="u",
            open_connections=opened,
            latency_s=latency_s,
            health="ejected" if worker == 2 else "healthy",
            why="consecutive connect failures" if worker == 2 else None,
            ejected_for_s=7.0 if worker == 2 else None,
        )
        figures.take(worker, Topic.LOADS, [row])
    assert figures.load(WEB, "u") == EndpointLoad(9, 0.2, "ejected", "consecutive connect failures", 7.0)
    assert figures.load(WEB, "another incarnation") == EndpointLoad(0, None)


def test_metrics_of_equal_names_and_labels_are_added_to_the_parents_own() -> None:
    own = Metrics()
    own.counter("lines_total", "Help.", lambda: {("x",): 1}, labels=("a",))
    own.gauge("build_info", "Help.", lambda: 1)
    figures = Figures()
    figures.take(1, Topic.METRICS, [family("lines_total", "counter", x=2, y=5), family("open", "gauge", x=1)])
    figures.take(2, Topic.METRICS, [family("lines_total", "counter", x=4), family("open", "gauge", x=2)])
    text = text_of(figures.families(own.read()))
    assert 'lines_total{a="x"} 7.0\n' in text
    assert 'lines_total{a="y"} 5.0\n' in text
    assert 'open{a="x"} 3.0\n' in text
    assert "build_info 1.0\n" in text
    assert text.count("# TYPE lines_total counter\n") == 1


def test_counters_never_go_back_when_a_worker_ends_and_gauges_do() -> None:
    figures = Figures()
    figures.take(1, Topic.METRICS, [family("bytes_total", "counter", x=100), family("open", "gauge", x=1)])
    figures.take(2, Topic.METRICS, [family("bytes_total", "counter", x=10), family("open", "gauge", x=2)])
    figures.ended(1)
    text = text_of(figures.families(Metrics().read()))
    assert 'bytes_total{a="x"} 110.0\n' in text
    assert 'open{a="x"} 2.0\n' in text
    figures.take(1, Topic.METRICS, [family("bytes_total", "counter", x=1)])
    figures.ended(1)
    assert 'bytes_total{a="x"} 111.0\n' in text_of(figures.families(Metrics().read()))


def test_a_family_in_several_rows_is_one_family() -> None:
    figures = Figures()
    figures.take(1, Topic.METRICS, [family("bytes_total", "counter", x=1), family("bytes_total", "counter", y=2)])
    text = text_of(figures.families(Metrics().read()))
    assert 'bytes_total{a="x"} 1.0\nbytes_total{a="y"} 2.0\n' in text


def test_records_of_all_workers_are_told_newest_first() -> None:
    figures = Figures()
    figures.take(1, Topic.RECENT, [LiveRow(cells={"id": "b", "time": "2026-01-01T00:00:02Z"})])
    figures.take(2, Topic.RECENT, [LiveRow(cells={"id": "c", "time": "2026-01-01T00:00:03Z"})])
    figures.take(2, Topic.RECENT, [LiveRow(cells={"id": "a", "time": "2026-01-01T00:00:01Z"})])

    assert [row["id"] for row in figures.recent()] == ["b", "a"]


def histogram_of(*observed: float) -> list[FamilyRow]:
    """What a worker says of a histogram."""
    metrics = Metrics()
    histogram = metrics.histogram("took_seconds", "Help.", bounds=(0.1, 1.0), labels={"way": ("in", "out")}).of("in")
    for each in observed:
        histogram.observe(each)
    return [
        FamilyRow(
            name=family.name,
            kind=family.kind,
            help_text=family.help_text,
            labels=family.labels,
            merge=family.merge,
            samples=tuple(
                SampleRow(values=sample.values, value=sample.value, suffix=sample.suffix) for sample in family.samples
            ),
        )
        for family in metrics.read()
        if family.name == "took_seconds"
    ]


def test_histograms_are_added_up_bucket_by_bucket_and_never_go_back() -> None:
    figures = Figures()
    figures.take(1, Topic.METRICS, histogram_of(0.05, 0.5))
    figures.take(2, Topic.METRICS, histogram_of(0.5, 7))
    figures.ended(1)
    found = parsed(figures.families(()))
    assert found["took_seconds_bucket"][("0.1", "in")] == 1
    assert found["took_seconds_bucket"][("1.0", "in")] == 3
    assert found["took_seconds_bucket"][("+Inf", "in")] == found["took_seconds_count"][("in",)] == 4
    assert found["took_seconds_sum"][("in",)] == 8.05
    assert found["took_seconds_count"][("out",)] == 0


def test_of_some_gauges_the_worst_process_is_shown() -> None:
    figures = Figures()
    own = Metrics()
    own.gauge("fullness", "Help.", lambda: {("x",): 0.2}, labels=("a",), merge="max")
    figures.take(1, Topic.METRICS, [family("fullness", "gauge", merge="max", x=0.9)])
    figures.take(2, Topic.METRICS, [family("fullness", "gauge", merge="max", x=0.1)])
    [shown] = [each for each in figures.families(own.read()) if each.name == "fullness"]
    assert list(shown.samples) == [Sample(("x",), 0.9)]
