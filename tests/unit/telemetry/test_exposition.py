"""The formats, the choice between them, and how much is written at once."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.telemetry.exposition import Format, accepts_gzip, gzipped, negotiate, render
from node_agent.telemetry.metrics import QUICK_S, Metrics
from tests.metrics_text import parsed, text_of

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Format.TEXT),
        ("text/plain", Format.TEXT),
        (PROMETHEUS_2_42, Format.OPENMETRICS),
        (PROMETHEUS_3, Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", Format.OPENMETRICS),
        ("application/openmetrics-text; version=2.0.0, text/plain;q=0.1", Format.TEXT),
        ("application/openmetrics-text;q=0.1, text/plain;q=0.9", Format.TEXT),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=nan", Format.TEXT),
        ("application/openmetrics-text;q=much", Format.TEXT),
        ("application/json", Format.TEXT),
    ],
)
def test_the_scraper_chooses_the_format(accept: str, form: Format) -> None:
    assert negotiate(accept) is form


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_no_field_is_too_strange(field: str) -> None:
    assert negotiate(field) in Format
    assert accepts_gzip(field) in {True, False}


@pytest.mark.parametrize(
    ("field", "accepted"),
    [("", False), ("gzip", True), ("deflate, GZIP;q=0.5", True), ("*", True), ("gzip;q=0, *", False), ("br", False)],
)
def test_it_is_compressed_for_those_who_can_read_that(field: str, accepted: bool) -> None:
    assert accepts_gzip(field) is accepted


def many() -> Metrics:
    metrics = Metrics()
    metrics.counter("ringfence_many_total", "Many.", lambda: {(str(n),): n for n in range(1000)}, labels=("n",))
    metrics.gauge("ringfence_none", "None.", dict, labels=("n",))
    metrics.histogram("ringfence_took_seconds", "Took.", bounds=QUICK_S, labels={"way": ("in", "out")})
    return metrics


@pytest.mark.parametrize("form", Format)
def test_a_long_scrape_comes_in_short_chunks_that_are_one_text(form: Format) -> None:
    chunks = list(render(many().read(), form))

    assert max(chunk.count(b"\n") for chunk in chunks) < 40
    assert b"".join(chunks).count(b"# TYPE ringfence_many") == 1
    assert b"".join(chunks).count(b"# EOF\n") == (form is Format.OPENMETRICS)
    found = parsed(many(), form)
    assert found["ringfence_many_total"] == {(str(n),): n for n in range(1000)}
    assert found["ringfence_took_seconds_count"] == {("in",): 0, ("out",): 0}


def test_both_formats_say_the_same() -> None:
    assert parsed(many(), Format.TEXT) == parsed(many(), Format.OPENMETRICS)


def test_what_is_compressed_is_the_same_text() -> None:
    chunks = list(render(many().read(), Format.TEXT))
    compressed = list(gzipped(chunks))

    assert len(compressed) == len(chunks) + 1  # one for one: others run between any two
    assert gzip.decompress(b"".join(compressed)) == b"".join(chunks)


def test_control_characters_and_quotes_of_a_label_stay_inside_of_it() -> None:
    metrics = Metrics()
    evil = 'x"} 1\nringfence_fake 1\n# EOF\r\\'
    metrics.gauge("ringfence_test", "Test.", lambda: {(evil,): 1}, labels=("name",))
    for form in Format:
        assert parsed(metrics, form)["ringfence_test"] == {(evil,): 1}
        assert "\nringfence_fake" not in text_of(metrics, form)
