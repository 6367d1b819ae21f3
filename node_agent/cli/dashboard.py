"""``ringfence dashboard``: the mesh as a picture, for a browser on this machine."""

import argparse
import ipaddress
import signal
import ssl
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node_agent.cli.agent_address import DEFAULT_SOCKET, SOCKET_VARIABLE, default_socket
from node_agent.cli.question import add_command
from node_agent.cli.terminal import printable

if TYPE_CHECKING:
    import trio

    from node_agent.config import HostPort

_ADDRESS: Final = "127.0.0.1:15080"


class _Unusable(Exception):
    """Something that was given can not be used; the text says what to do."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``dashboard``."""
    parser = add_command(
        commands,
        "dashboard",
        text="serve the mesh as a picture, for a browser",
        description="Serves a page that shows the services of the whole cluster, who talks to whom, encrypted or\n"
        "denied, with live rates.  It changes nothing.  On loopback everybody on this machine may look;\n"
        "elsewhere only who has the token.  Ends with Ctrl-C.",
        examples=[
            "ringfence dashboard  # then open http://127.0.0.1:15080/",
            "ssh -L 15080:127.0.0.1:15080 NODE ringfence dashboard  # of a node far away",
            "ringfence dashboard --address 10.0.0.5:15080 --token-file FILE --tls-cert FILE --tls-key FILE",
        ],
    )
    parser.add_argument("--address", metavar="HOST:PORT", default=_ADDRESS, help=f"default {_ADDRESS}")
    parser.add_argument(
        "--agent",
        metavar="PATH",
        default=default_socket(),
        help=f"the agent's unix socket; default ${SOCKET_VARIABLE}, else {DEFAULT_SOCKET}",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="whoever looks has to know what is in it: 16 characters or more, readable by its owner only",
    )
    parser.add_argument("--tls-cert", metavar="FILE", type=Path, help="PEM chain: serve HTTPS")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="its private key, PEM, without a passphrase")
    parser.add_argument(
        "--host-name", metavar="NAME", action="append", default=[], help="a DNS name that it is reached by; repeatable"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import trio  # noqa: PLC0415  (no other command but the agent loads it)

    try:
        setting = _read(args)
        trio.run(_serve, setting)
    except _Unusable as error:
        print(f"ringfence: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What was asked for, checked; whatever is unusable was refused before anything listens."""

    address: "HostPort"
    agent: Path
    token: str | None
    tls: ssl.SSLContext | None
    names: tuple[str, ...]


def _read(args: argparse.Namespace) -> _Setting:
    from node_agent.config import HostPort  # noqa: PLC0415

    try:
        address = HostPort.parse(args.address)
    except ValueError as error:
        raise _Unusable(f"--address {args.address}: {error}") from error
    token = _read_token(args.token_file) if args.token_file is not None else None
    _require_guarded(address.host, token)
    names = tuple(args.host_name)
    return _Setting(address=address, agent=Path(args.agent), token=token, tls=_tls_context(args), names=names)


async def _serve(setting: _Setting) -> None:
    import trio  # noqa: PLC0415

    from node_agent.dashboard.server import serve  # noqa: PLC0415
    from node_agent.dashboard.source import Source, asking  # noqa: PLC0415

    try:
        listeners = await trio.open_tcp_listeners(setting.address.port, host=setting.address.host or None)
    except OSError as error:
        why = error.strerror or error
        raise _Unusable(f"--address {setting.address}: can not listen: {why}; choose another port") from error

    async def secure(stream: "trio.abc.HalfCloseableStream") -> "trio.abc.Stream":
        assert setting.tls is not None
        tls = trio.SSLStream(stream, setting.tls, server_side=True, https_compatible=True)
        await tls.do_handshake()
        return tls

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async with trio.open_nursery() as nursery:
            server = partial(
                serve,
                source=Source(asking(setting.agent)),
                listeners=listeners,
                token=setting.token,
                names=setting.names,
                secure=secure if setting.tls is not None else None,
                started=partial(_say_where, setting),
            )
            nursery.start_soon(server)
            async for _ in received:
                nursery.cancel_scope.cancel()


def _say_where(setting: _Setting) -> None:
    address = str(setting.address) if setting.address.host else f"THIS-MACHINE:{setting.address.port}"
    print(f"{'http' if setting.tls is None else 'https'}://{address}/  (Ctrl-C ends it)", flush=True)
    if setting.tls is None and not _is_loopback(setting.address.host):
        print("ringfence: warning: token and page cross the network in clear; add --tls-cert", file=sys.stderr)


def _require_guarded(host: str, token: str | None) -> None:
    if token is None and not _is_loopback(host):
        raise _Unusable(
            f"--address {host or '(every address)'}: whoever reaches it would see the whole mesh; "
            "add --token-file FILE, or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(path: Path) -> str:
    from node_agent.dashboard.gate import MIN_TOKEN_CHARS  # noqa: PLC0415

    try:
        if path.stat().st_mode & 0o077:
            raise _Unusable(f"--token-file {path}: others may read it; chmod 600 {path}")
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise _Unusable(f"--token-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _Unusable(f"--token-file {path}: holds something else than ASCII") from error
    if len(token) < MIN_TOKEN_CHARS or not token.isprintable():
        raise _Unusable(
            f"--token-file {path}: expected at least {MIN_TOKEN_CHARS} printable characters; "
            f"make one with: (umask 077; openssl rand -hex 32 > {path})"
        )
    return token


def _tls_context(args: argparse.Namespace) -> ssl.SSLContext | None:
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise _Unusable("--tls-cert and --tls-key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(args.tls_cert, args.tls_key, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else "do not fit"
        raise _Unusable(f"--tls-cert {args.tls_cert} and --tls-key {args.tls_key}: {why}; PEM, leaf first") from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted")
