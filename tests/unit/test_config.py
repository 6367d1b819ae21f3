"""agent.toml: every mistake is one line with file, section, key and remedy; nothing is silently ignored."""

from pathlib import Path

import pytest

from node_agent.config import HostPort, load
from node_agent.errors import ConfigError
from node_agent.export_config import Sink, record_collector, trace_collector

_LEAST = '[agent]\nnode = "node-1"\n[ca]\naddress = "10.0.0.1:15012"\nbundle_file = "/etc/bundle.pem"\n'
_TRACING = '[tracing]\nendpoint = "{}"\n'


def _write(directory: Path, text: str | bytes) -> Path:
    path = directory / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_must_be_set_is_little(tmp_path: Path) -> None:
    config = load(_write(tmp_path, _LEAST))

    assert config.agent.node == "node-1"
    assert config.ca.address == (HostPort(host="10.0.0.1", port=15012),)
    assert config.agent.drain_grace_s == 30
    assert config.proxy.identity_wait_s == 5


def test_the_workload_api_is_off_unless_it_is_wanted_and_has_a_directory_of_its_own(tmp_path: Path) -> None:
    config = load(_write(tmp_path, _LEAST))
    assert not config.workload_api.enabled
    assert config.workload_api_socket == Path("/run/ringfence/workload/api.sock")
    elsewhere = load(_write(tmp_path, _LEAST + '[workload_api]\nenabled = true\nsocket = "/x/y.sock"\n'))
    assert elsewhere.workload_api.enabled
    assert elsewhere.workload_api_socket == Path("/x/y.sock")


def test_spans_and_records_go_where_they_are_wanted(tmp_path: Path) -> None:
    config = load(_write(tmp_path, _LEAST))
    assert trace_collector(config.tracing) is None
    assert config.access_log.sinks == (Sink.STDOUT,)
    assert record_collector(config.access_log, config.tracing) is None

    text = '[tracing]\nendpoint = "https://[fd00::1]:4318/"\nheaders_file = "/h"\ntimeout_s = 2\n'
    text += '[access_log]\nsinks = ["file", "otlp"]\nfile = "/var/log/access.log"\n'
    config = load(_write(tmp_path, _LEAST + text))
    spans, records = trace_collector(config.tracing), record_collector(config.access_log, config.tracing)
    assert spans is not None
    assert records is not None
    assert spans.url == "https://[fd00::1]:4318/v1/traces"
    assert records.url == "https://[fd00::1]:4318/v1/logs"
    assert records.headers_file == spans.headers_file == Path("/h")
    assert records.timeout_s == 2

    config = load(_write(tmp_path, _LEAST + text.replace("4318/", "4318/otlp/v1/traces")))
    records = record_collector(config.access_log, config.tracing)
    assert records is not None
    assert records.url == "https://[fd00::1]:4318/otlp/v1/logs"

    config = load(_write(tmp_path, _LEAST + text + 'otlp_endpoint = "http://c/logs"\n'))
    records = record_collector(config.access_log, config.tracing)
    assert records is not None
    assert (records.url, records.headers_file) == ("http://c:80/logs", None)


def test_the_ca_may_have_several_addresses(tmp_path: Path) -> None:
    text = _LEAST.replace('"10.0.0.1:15012"', '["10.0.0.1:15012", "[fd00::1]:1", "ca.example:15012"]')
    assert [str(each) for each in load(_write(tmp_path, text)).ca.address] == [
        "10.0.0.1:15012",
        "[fd00::1]:1",
        "ca.example:15012",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_LEAST.replace('"10.0.0.1:15012"', "[]"), "[ca] address = []: expected one address, or a list of 1 to 16"),
        (_LEAST.replace('"10.0.0.1:15012"', '["ca:1", 5]'), "[ca] address = ['ca:1', 5]: expected a text"),
        (_LEAST.replace('"10.0.0.1:15012"', '["ca:1", ":5"]'), "[ca] address: expected host:port of the CA"),
        (_LEAST.replace('node = "node-1"', ""), "[agent] node: missing; it has no default, set it"),
        (_LEAST.replace('address = "10.0.0.1:15012"', ""), "[ca] address: missing"),
        (_LEAST.replace("node-1", ""), "[agent] node = '': expected a text that is not empty"),
        (_LEAST.replace('"node-1"', "1"), "[agent] node = 1: expected a text"),
        (_LEAST.replace("node-1", "node 1"), "[agent] node = 'node 1': "),
        (_LEAST.replace("node-1", "a/b"), "[agent] node = 'a/b': "),
        (_LEAST + '[agents]\nx = "y"\n', "[agents]: unknown section; the sections are agent, ca, "),
        ("agent = 5\n", "agent: expected a section, write [agent] on its own line"),
        (_LEAST.replace("[ca]", "nodes = 5\n[ca]"), "[agent] nodes: unknown key; the keys are node, trust_domain, "),
        (_LEAST.replace("[ca]", 'trust_domain = "A b"\n[ca]'), "[agent] trust_domain = 'A b': "),
        (_LEAST.replace("[ca]", 'log_level = "loud"\n[ca]'), "[agent] log_level = 'loud': expected one of debug, "),
        (_LEAST.replace("[ca]", 'runtime_dir = "run"\n[ca]'), "[agent] runtime_dir = 'run': expected an absolute path"),
        (_LEAST.replace("[ca]", "drain_grace_s = -1\n[ca]"), "[agent] drain_grace_s = -1: expected a value between 0"),
        (_LEAST.replace("[ca]", "drain_grace_s = nan\n[ca]"), "[agent] drain_grace_s = nan: expected a value between"),
        (_LEAST.replace("[ca]", "drain_grace_s = true\n[ca]"), "[agent] drain_grace_s = True: expected a number"),
        (_LEAST + "[workload_api]\nenabled = 1\n", "[workload_api] enabled = 1: expected true or false"),
        (_LEAST + '[workload_api]\nenabled = "yes"\n', "[workload_api] enabled = 'yes': expected true or false"),
        (_LEAST + '[workload_api]\nsocket = "api.sock"\n', "[workload_api] socket = 'api.sock': expected an absolute"),
        (
            _LEAST + "[proxy]\nmax_connect_attempts = 1.5\n",
            "[proxy] max_connect_attempts = 1.5: expected a whole number",
        ),
        (_LEAST.replace("10.0.0.1:15012", "10.0.0.1"), "[ca] address = '10.0.0.1': expected \"host:port\""),
        (_LEAST.replace("10.0.0.1:15012", "fd00::1:15012"), "[ca] address = 'fd00::1:15012': an IPv6 address needs"),
        (_LEAST.replace("10.0.0.1:15012", "ca:99999"), "[ca] address = 'ca:99999': expected \"host:port\" with a port"),
        (_LEAST.replace("10.0.0.1:15012", ":15012"), "[ca] address: expected host:port of the CA"),
        (_LEAST + '[capture]\nmode = "magic"\n', "[capture] mode = 'magic': expected one of inpod"),
        (_LEAST + '[capture]\nnetns_path = "/run/{pod}"\n', "[capture] netns_path = '/run/{pod}': only {namespace}, "),
        (_LEAST + '[capture]\nnetns_path = "/run/{name"\n', "[capture] netns_path = '/run/{name': only {namespace}, "),
        (
            _LEAST + '[capture]\nnetns_path = "/run/netns"\n',
            "[capture] netns_path = '/run/netns': expected an absolute path that",
        ),
        (
            _LEAST + '[capture]\nnetns_path = "/up/{namespace}"\n',
            "[capture] netns_path = '/up/{namespace}': expected an absolute",
        ),
        (_LEAST + '[listen]\nmetrics = "nowhere"\n', "[listen] metrics = 'nowhere': expected \"host:port\""),
        (_LEAST + _TRACING.format("ftp://c"), "[tracing] endpoint = 'ftp://c': expected a URL that begins with http"),
        (_LEAST + _TRACING.format("c:4318"), "[tracing] endpoint = 'c:4318': expected a URL that begins with http"),
        (_LEAST + _TRACING.format("http://"), "[tracing] endpoint = 'http://': expected a URL that begins with"),
        (
            _LEAST + _TRACING.format("http://u:p@c"),
            "[tracing] endpoint = 'http://u:p@c': expected a URL without a user",
        ),
        (_LEAST + _TRACING.format("http://c/?a=b"), "[tracing] endpoint = 'http://c/?a=b': expected a URL without a q"),
        (_LEAST + _TRACING.format("http://c:0"), "[tracing] endpoint = 'http://c:0': expected a port between 1 and"),
        (_LEAST + _TRACING.format("http://c:70000"), "[tracing] endpoint = 'http://c:70000': "),
        (_LEAST + _TRACING.format("http://c d"), "[tracing] endpoint = 'http://c d': expected a URL such as"),
        (_LEAST + _TRACING.format("http://[::1"), "[tracing] endpoint = 'http://[::1': "),
        (_LEAST + "[tracing]\nsample_ratio = 1.5\n", "[tracing] sample_ratio = 1.5: expected a value between 0 and 1"),
        (_LEAST + '[tracing]\nca_file = "/c"\n', "[tracing] ca_file: is not read without endpoint"),
        (
            _LEAST + _TRACING.format("http://c") + 'headers_file = "/h"\n',
            "[tracing] headers_file: would be sent in clear to http://c:80; use https",
        ),
        (_LEAST + "[access_log]\nsinks = []\n", "[access_log] sinks = []: expected a list of at least one of stdout, "),
        (_LEAST + '[access_log]\nsinks = "file"\n', "[access_log] sinks = 'file': expected a list of at least one of"),
        (
            _LEAST + '[access_log]\nsinks = ["syslog"]\n',
            "[access_log] sinks = ['syslog']: expected one of stdout, file",
        ),
        (_LEAST + '[access_log]\nsinks = ["stdout", "stdout"]\n', "[access_log] sinks: the same one twice"),
        (_LEAST + '[access_log]\nsinks = ["file"]\n', '[access_log] file: missing with the sink "file"'),
        (_LEAST + '[access_log]\nfile = "/a"\n', '[access_log] file: is not written without the sink "file"'),
        (_LEAST + '[access_log]\nsinks = ["otlp"]\n', '[access_log] otlp_endpoint: missing with the sink "otlp"'),
        (
            _LEAST + _TRACING.format("http://c/x") + '[access_log]\nsinks = ["otlp"]\n',
            "[access_log] otlp_endpoint: missing; the path of [tracing] endpoint does not end in /v1/traces",
        ),
        (
            _LEAST + '[access_log]\notlp_endpoint = "http://c"\n',
            '[access_log] otlp_endpoint: is not read without the sink "otlp"',
        ),
        ("[agent\n", "not valid TOML: "),
        ('[agent]\nnode = "a"\nnode = "b"\n', "not valid TOML: "),
        (b"[agent]\nnode = '\xff'\n", "not valid TOML: "),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = _write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert (
        str(caught.value)
        == f"{path}: cannot read the configuration: No such file or directory; create it or pass --config"
    )


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration: Is a directory"):
        load(tmp_path)
