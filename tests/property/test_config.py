"""agent.toml: whatever is in it, it is a configuration within its bounds or a ConfigError that names file and place."""

import dataclasses
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from node_agent import config as configuration
from node_agent.config import Config, HostPort, load
from node_agent.errors import ConfigError

_texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["/run/{name}", "/run/{name[x]}", "/{uid.y}", "127.0.0.1:80", "[::1]:443", ":1", "info", "/a\0b"]),
    st.text("{}[]:/.namespcuid0", max_size=12),
)
_values = st.one_of(
    _texts,
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(),
    st.lists(st.integers(0, 3), max_size=2),
)
_KEYS = {
    item.name: [key.name for key in dataclasses.fields(item.type)]
    for item in dataclasses.fields(Config)
    if isinstance(item.type, type)
}
_sections = st.fixed_dictionaries(
    {},
    optional={
        name: st.dictionaries(st.sampled_from([*keys, "unknown"]), _values, max_size=4) for name, keys in _KEYS.items()
    },
)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(each):08X}" for each in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


@given(sections=_sections, complete=st.booleans())
@example(sections={"capture": {"netns_path": "/run/{name[x]}"}}, complete=True)
@example(sections={"listen": {"metrics": ":" + "9" * 5000}}, complete=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_document(tmp_path: Path, sections: dict[str, dict[str, Any]], complete: bool) -> None:
    if complete:
        sections = {**sections}
        sections["agent"] = {"node": "node-1", **sections.get("agent", {})}
        sections["ca"] = {"address": "ca:15012", "bundle_file": "/b.pem", **sections.get("ca", {})}
    path = tmp_path / "agent.toml"
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
        for name, table in sections.items()
    )
    path.write_text(text)
    try:
        config = load(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")
        return
    assert config.proxy.connect_timeout_s > 0
    assert config.ca.bundle_file.is_absolute()
    assert configuration.TUNNEL_PORT in configuration.CAPTURE_PORTS
    assert config.capture.netns_path.format(namespace="n", name="p", uid="u").startswith("/")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    try:
        load(path)
    except ConfigError as error:
        assert str(path) in str(error)


@given(host=st.text("abc.0123456789-:", max_size=20), port=st.integers(1, 65535))
def test_address_reads_as_it_is_written(host: str, port: int) -> None:
    written = HostPort(host=host, port=port)
    assert HostPort.parse(str(written)) == written
