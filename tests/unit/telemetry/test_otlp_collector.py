"""How a collector is reached, and what it may do wrong."""

import socket
import ssl
from pathlib import Path

import pytest
import trustme

from node_agent.errors import ConfigError
from node_agent.export_config import Collector
from node_agent.telemetry.otlp_collector import read_headers
from node_agent.telemetry.otlp_spans import span_sender
from tests.otlp_bench import SOURCE, Bench, collector_at
from tests.otlp_collector import TRACES, Answer, OtlpCollector

# -- a collector that is not as it should be --------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(status=400), "the collector answers 400 Bad Request"),
        (Answer(status=401), "the collector answers 401 Unauthorized"),
        (Answer(status=302, headers={"Location": "/elsewhere"}), "the collector answers 302 Found"),
        (Answer(status=503, headers={"Retry-After": "86400"}), "the collector answers 503 Service Unavailable"),
    ],
)
def test_what_the_collector_does_not_take_is_told(collector: OtlpCollector, answer: Answer, says: str) -> None:
    collector.answer = answer
    bench = Bench()
    bench.outbound()
    assert span_sender(collector_at(collector.url + TRACES), SOURCE).send(bench.spans) == says
    assert collector.requests == 1, "not asked again, and no redirect followed"


def test_an_answer_that_never_ends_costs_no_memory(collector: OtlpCollector) -> None:
    collector.answer = Answer(body=b"x" * 50_000_000)
    bench = Bench()
    bench.outbound()
    sender = span_sender(collector_at(collector.url + TRACES), SOURCE)
    assert sender.send(bench.spans) is None
    assert sender.send(bench.spans) is None, "over another connection"


def test_nobody_there_is_told_in_the_kernels_words() -> None:
    with OtlpCollector() as gone:
        url = gone.url
    bench = Bench()
    bench.outbound()
    problem = span_sender(collector_at(url + TRACES, timeout_s=30), SOURCE).send(bench.spans)
    assert problem is not None
    assert problem.endswith("[Errno 111] Connection refused")


def test_neither_a_proxy_nor_headers_are_taken_from_the_environment_of_requests(
    collector: OtlpCollector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    headers = tmp_path / "headers"
    headers.write_text("# for the collector\n\nAuthorization: Bearer s3cret token \nX-Scope-OrgID:mesh\n")
    headers.chmod(0o600)
    bench = Bench()
    bench.outbound()
    sender = span_sender(collector_at(collector.url + TRACES, headers_file=headers), SOURCE)
    assert sender.send(bench.spans) is None
    [got] = collector.headers
    assert got["authorization"] == "Bearer s3cret token"
    assert got["x-scope-orgid"] == "mesh"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Authorization Bearer s3cret\n", "line 1: expected Name: value"),
        ("A: b\n\nB: s3cret\x07\n", "line 3: expected Name: value"),
        ("A: s3cret\nA: s3cret\n", "line 2: a is there twice"),
        ("Content-Length: 3\n", "line 1: content-length is set by the agent itself"),
        ("A: " + "s3cret" * 20_000, "longer than 65536 bytes"),
        ("A: s3cr\xe9t\n", "line 1: expected Name: value"),
    ],
)
def test_a_broken_headers_file_is_told_by_line_and_its_secrets_are_not(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "headers"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_headers(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "s3cr" not in str(caught.value)


def test_a_headers_file_that_others_may_read_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_headers(path)
    path.write_text("A: b\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="its mode is 0640, so others may read it; chmod 600"):
        read_headers(path)


def test_a_ca_file_without_certificates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    for there in (path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="ca_file .*: expected certificates in PEM"):
            span_sender(Collector(url="https://c:1/v1/traces", timeout_s=1, headers_file=None, ca_file=there), SOURCE)


def test_over_https_the_collector_has_to_prove_its_name(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    roots = {}
    for name, each in (("right", authority), ("wrong", other)):
        roots[name] = tmp_path / f"{name}.pem"
        each.cert_pem.write_to_path(roots[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    bench = Bench()
    bench.outbound()

    def send(url: str, ca_file: Path | None) -> str | None:
        where = Collector(url=url + TRACES, timeout_s=30, headers_file=None, ca_file=ca_file)
        return span_sender(where, SOURCE).send(bench.spans)

    with OtlpCollector(socket.create_server(("0.0.0.0", 0)), tls=context) as collector:
        url = f"https://127.0.0.1:{collector.address[1]}"
        assert send(url, roots["right"]) is None
        for ca_file in (roots["wrong"], None):
            problem = send(url, ca_file)
            assert problem is not None
            assert "CERTIFICATE_VERIFY_FAILED" in problem
        problem = send(url.replace("127.0.0.1", "127.0.0.2"), roots["right"])
        assert problem is not None
        assert "IP address mismatch" in problem
    assert len(collector.spans) == 1
