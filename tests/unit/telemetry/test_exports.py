"""What is configured is opened at the start, or the agent does not start; what is not is not even imported."""

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

import pytest

from node_agent.config import Config, load
from node_agent.errors import ConfigError
from node_agent.telemetry.access_log import ACCESS_LOGGER
from node_agent.telemetry.exports import Exports, check_exports
from node_agent.telemetry.logs import Logging
from node_agent.telemetry.metrics import Metrics
from tests.otlp_collector import OtlpCollector

ROOT: Final = Path(__file__).parents[3]
LEAST: Final = '[agent]\nnode = "node-1"\n[ca]\naddress = "10.0.0.1:15012"\nbundle_file = "/etc/bundle.pem"\n'
TRACING: Final = '[tracing]\nendpoint = "http://127.0.0.1:1"\n'


@pytest.fixture(autouse=True)
def access_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(ACCESS_LOGGER)
    before, level, propagate = logger.handlers[:], logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)
    logger.propagate = propagate


def configured(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "agent.toml"
    path.write_text(LEAST + text)
    return load(path)


def names(metrics: Metrics) -> set[str]:
    return {family.name for family in metrics.read()}


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter.otlp.proto.http", "requests"])
@pytest.mark.parametrize("text", [TRACING, '[access_log]\nsinks = ["otlp"]\notlp_endpoint = "http://127.0.0.1:1"\n'])
def test_without_the_packages_it_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, text: str
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str) -> ModuleSpec | None:
        if name == missing:
            return None
        if name.startswith(f"{missing}."):
            raise ModuleNotFoundError(name)
        return find_spec(name)

    monkeypatch.setattr("node_agent.telemetry.exports.find_spec", without)
    config = configured(tmp_path, text)
    for start in (check_exports, lambda config: Exports(config, Logging({}))):
        with pytest.raises(ConfigError) as caught:
            start(config)
        package = missing.partition(".")[0]
        assert f"the Python package {package} is not installed; install ringfence[otlp]" in str(caught.value)
        assert str(caught.value).startswith('[tracing] endpoint, or the sink "otlp" of [access_log]: ')


def test_a_file_that_can_not_be_opened_stops_the_agent(tmp_path: Path) -> None:
    text = f'[access_log]\nsinks = ["file"]\nfile = "{tmp_path}/nowhere/access.log"\n'
    config = configured(tmp_path, text)
    for start in (check_exports, lambda config: Exports(config, Logging({}))):
        with pytest.raises(ConfigError) as caught:
            start(config)
        assert str(caught.value) == (
            f"[access_log] file = '{tmp_path}/nowhere/access.log': can not be opened: No such file or directory; "
            "it has to be a regular file, or none yet, in a directory that is there"
        )


def test_nothing_is_opened_or_counted_that_is_not_wanted(tmp_path: Path, access_logger: logging.Logger) -> None:
    before = access_logger.handlers[:]
    exports = Exports(configured(tmp_path, ""), Logging({}))
    assert exports.spans is None
    assert access_logger.handlers == before
    metrics = Metrics()
    exports.register(metrics)
    assert names(metrics) == names(Metrics())
    exports.close()


def test_an_agent_without_a_collector_does_not_import_what_one_needs() -> None:
    program = (
        "import sys, node_agent.agent, node_agent.telemetry.exports, node_agent.workers.worker;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'opentelemetry', 'requests', 'google'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert done.stdout == b"[]\n"


def test_one_record_goes_to_all_sinks_and_is_counted(tmp_path: Path, access_logger: logging.Logger) -> None:
    with OtlpCollector() as collector:
        config = configured(
            tmp_path,
            f'[tracing]\nendpoint = "{collector.url}"\n'
            f'[access_log]\nsinks = ["file", "otlp"]\nfile = "{tmp_path}/access.log"\n',
        )
        logs = Logging({})
        exports = Exports(config, logs, worker=3)
        metrics = Metrics()
        exports.register(metrics)
        logs.register(metrics)
        text = (
            '{"event": "closed", "time": "2026-11-22T11:35:06.673Z", "close_reason": "ok", "trace_id": null,'
            ' "span_id": null}'
        )
        access_logger.info(text)
        exports.close()
        logs.close()
    assert (tmp_path / "access.log").read_text() == text + "\n"
    [log] = collector.logs
    assert log.body == {"event": "closed", "time": "2026-11-22T11:35:06.673Z", "close_reason": "ok"}
    assert log.resource["service.instance.id"] == "node-1/3"
    readings = {family.name: [sample.value for sample in family.samples] for family in metrics.read()}
    assert readings["ringfence_otlp_records_exported_total"] == [1]
    assert readings["ringfence_otlp_records_dropped_total"] == [0]
    assert readings["ringfence_spans_exported_total"] == [0]
    assert readings["ringfence_log_lines_dropped_total"] == [0]
