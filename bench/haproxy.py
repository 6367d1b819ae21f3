"""HAProxy for the job: a plain listener to mutual TLS, and mutual TLS to a plain application."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.certificates import Certificates

_GLOBAL: Final = """\
global
    nbthread 1
    maxconn {max_connections}
    tune.ssl.cachesize 0
    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode tcp
    maxconn {max_connections}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"""


def command(config: Path) -> list[str]:
    """In the foreground, one process."""
    return ["/usr/sbin/haproxy", "-db", "-f", str(config)]


def outbound_config(
    certificates: Certificates, max_connections: int, *, listen: Mapping[str, int], to: Mapping[str, tuple[str, int]]
) -> str:
    """In the client's pod: listens on loopback, speaks mutual TLS to the server's pod."""
    tls = f"ssl verify required ca-file {certificates.root} crt {certificates.client.both} no-ssl-reuse"
    return _GLOBAL.format(max_connections=max_connections) + "".join(
        _section(name, bind=f"127.0.0.1:{listen[name]}", server=f"{host}:{port} {tls}")
        for name, (host, port) in to.items()
    )


def inbound_config(
    certificates: Certificates, max_connections: int, *, listen: Mapping[str, int], to: Mapping[str, tuple[str, int]]
) -> str:
    """In the server's pod: takes mutual TLS, speaks plain TCP to the application over loopback."""
    tls = f"ssl crt {certificates.server.both} ca-file {certificates.root} verify required"
    return _GLOBAL.format(max_connections=max_connections) + "".join(
        _section(name, bind=f"0.0.0.0:{listen[name]} {tls}", server=f"{host}:{port}")
        for name, (host, port) in to.items()
    )


def _section(name: str, *, bind: str, server: str) -> str:
    return f"listen {name}\n    bind {bind} backlog 16384\n    server {name} {server}\n"
