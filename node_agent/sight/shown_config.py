"""``GET /config`` on the operator's socket: the configuration in force, without anything secret.

An allow-list: a key that is not on it is told to be there and not shown, so that
a key that somebody adds is hidden until somebody has thought about it.  Paths of
files are shown, never what is in them.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from ca.http_server import Routes, json_response
from node_agent.config import Config

HIDDEN: Final = "(not shown)"
_SHOWN: Final[Mapping[str, frozenset[str]]] = {
    "agent": frozenset({"node", "trust_domain", "runtime_dir", "state_dir", "log_level", "drain_grace_s", "workers"}),
    "ca": frozenset(
        {
            "address",
            "attestation",
            "bundle_file",
            "instance_document_file",
            "instance_signature_file",
            "join_token_file",
            "node_key_dir",
            "node_key_passphrase_file",
            "service_account_token_file",
        }
    ),
    "registry": frozenset({"manifests_dir"}),
    "capture": frozenset({"mode", "netns_path"}),
    "proxy": frozenset(
        {
            "connect_timeout_s",
            "handshake_timeout_s",
            "identity_wait_s",
            "max_connect_attempts",
            "max_pending_handshakes",
            "open_timeout_s",
            "outbound_traffic_policy",
            "share_tunnels",
        }
    ),
    "listen": frozenset({"metrics", "readiness", "sight"}),
    "metrics": frozenset({"max_label_sets"}),
    "workload_api": frozenset({"enabled", "socket"}),
    "dns": frozenset({"servers"}),
    "tracing": frozenset({"ca_file", "endpoint", "headers_file", "sample_ratio", "service_name", "timeout_s"}),
    "access_log": frozenset(
        {
            "file",
            "keep_files",
            "opened_record",
            "otlp_ca_file",
            "otlp_endpoint",
            "otlp_headers_file",
            "rotate_bytes",
            "sinks",
        }
    ),
}


def shown_config(config: Config) -> dict[str, dict[str, object]]:
    """The sections and their keys as agent.toml has them."""
    return {
        section.name: {
            key.name: _plain(getattr(values, key.name)) if key.name in _SHOWN.get(section.name, ()) else HIDDEN
            for key in fields(values)
        }
        for section in fields(config)
        for values in (getattr(config, section.name),)
    }


def config_routes(config: Config) -> Routes:
    """For ``ringfence bundle``."""
    return {"/config": {"GET": lambda _: json_response(200, shown_config(config))}}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value)
