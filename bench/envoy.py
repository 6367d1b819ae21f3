"""Envoy for the job: a plain listener to mutual TLS, and mutual TLS to a plain application."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.certificates import Certificate, Certificates

_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_MANY: Final = 1 << 20
_PLENTY: Final = {"thresholds": [{"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY}]}


def command(binary: Path, config: Path) -> list[str]:
    """One worker; no hot restart, so that two can run; quiet."""
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [str(binary), *options, "--config-path", str(config)]


def outbound_config(certificates: Certificates, *, listen: Mapping[str, int], to: Mapping[str, tuple[str, int]]) -> str:
    """In the client's pod: listens on loopback, speaks mutual TLS to the server's pod."""
    context = {
        "@type": _TLS + "UpstreamTlsContext",
        "max_session_keys": 0,  # no resumption
        "common_tls_context": _common_tls(certificates, certificates.client, peer=certificates.server),
    }
    return _config(
        {name: ("127.0.0.1", port) for name, port in listen.items()},
        to,
        cluster_tls={"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}},
    )


def inbound_config(certificates: Certificates, *, listen: Mapping[str, int], to: Mapping[str, tuple[str, int]]) -> str:
    """In the server's pod: takes mutual TLS, speaks plain TCP to the application over loopback."""
    context = {
        "@type": _TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
        "common_tls_context": _common_tls(certificates, certificates.server, peer=certificates.client),
    }
    return _config(
        {name: ("0.0.0.0", port) for name, port in listen.items()},
        to,
        listener_tls={"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}},
    )


def _common_tls(certificates: Certificates, own: Certificate, *, peer: Certificate) -> dict[str, Any]:
    matcher = {"san_type": "URI", "matcher": {"exact": peer.uri}}
    return {
        # BoringSSL takes no list of TLS 1.3 suites; with AES instructions it agrees on AES-128-GCM (see wire.py).
        # Its default key exchange, X25519MLKEM768, is one that OpenSSL 3.0 does not have: the same for all.
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519"],
        },
        "tls_certificates": [
            {"certificate_chain": {"filename": str(own.chain)}, "private_key": {"filename": str(own.key)}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(certificates.root)},
            "match_typed_subject_alt_names": [matcher],
        },
    }


def _config(
    listen: Mapping[str, tuple[str, int]],
    to: Mapping[str, tuple[str, int]],
    *,
    listener_tls: Mapping[str, Any] | None = None,
    cluster_tls: Mapping[str, Any] | None = None,
) -> str:
    return json.dumps(
        {
            "static_resources": {
                "listeners": [_listener(name, address, listener_tls or {}) for name, address in listen.items()],
                "clusters": [_cluster(name, address, cluster_tls or {}) for name, address in to.items()],
            }
        }
    )


def _listener(name: str, address: tuple[str, int], tls: Mapping[str, Any]) -> Any:
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": name,
    }
    return {
        "name": name,
        "address": _address(address),
        "tcp_backlog_size": 16384,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}], **tls}],
    }


def _cluster(name: str, address: tuple[str, int], tls: Mapping[str, Any]) -> Any:
    endpoint = {"endpoint": {"address": _address(address)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": _PLENTY,  # the default stops at 1024 connections
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **tls,
    }


def _address(address: tuple[str, int]) -> Any:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}
