"""Ask a Kubernetes API server: HTTP/1.1 over TLS, one request a connection.

Strict, because the requests carry two secrets (the authority's own token, and
the one to review): the server has to prove itself by the cluster's CA, a
redirect is never followed, and no error quotes what was sent or came back.  The
authority's token and the cluster's CA are read for each request: both change
while it runs.

The caller sets the deadline.
"""

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h11
import trio

from ca.failures import why
from ca.http_client import TooLong, exchange

_MAX_BODY_BYTES: Final = 2 * 1024 * 1024  # an object in etcd has at most 1.5 MiB
_MAX_TOKEN_BYTES: Final = 16 * 1024
_HINTS: Final = {
    401: "it does not know the token in {token_file} ([attestation.kubernetes] token_file)",
    403: "the authority's service account may not do this: it needs the ClusterRole system:auth-delegator, "
    "and get on pods where Kubernetes is older than 1.30",
    429: "it is overloaded",
}


class ApiServerError(Exception):
    """There is no answer to go by; ``status`` is that of HTTP where there was one.  For the operator's eyes."""

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """Where it is, and what proves both sides."""

    host: str
    port: int
    ca_file: Path
    token_file: Path

    def __str__(self) -> str:
        return f"the API server at {self.host} port {self.port}"

    async def post(self, path: str, body: bytes) -> Any:
        """Post a JSON document and return the one that comes back.  Raises ApiServerError."""
        return await self._ask("POST", path, body)

    async def get(self, path: str) -> Any:
        """Return the JSON document at ``path``.  Raises ApiServerError."""
        return await self._ask("GET", path, b"")

    async def _ask(self, method: str, path: str, body: bytes) -> Any:
        context, token = await trio.to_thread.run_sync(self._credentials, abandon_on_cancel=True)
        headers = [
            ("Host", f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"),
            ("Authorization", f"Bearer {token}"),
            ("Accept", "application/json"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        request = h11.Request(method=method, target=path, headers=headers)
        try:
            transport = await trio.open_tcp_stream(self.host, self.port)
            stream = trio.SSLStream(transport, context, server_hostname=self.host, https_compatible=True)
            try:
                answer = await exchange(stream, request, body, max_body_bytes=_MAX_BODY_BYTES)
            finally:
                await trio.aclose_forcefully(stream)
        except (OSError, trio.BrokenResourceError) as exc:
            raise ApiServerError(f"{self} can not be asked: {why(exc)}") from None
        except h11.RemoteProtocolError:
            raise ApiServerError(f"{self} does not speak HTTP/1.1 (RFC 9112)") from None
        except TooLong:
            raise ApiServerError(f"{self} answered with more than {_MAX_BODY_BYTES} bytes") from None
        return self._document(answer.status, answer.body)

    def _document(self, status: int, answer: bytes) -> Any:
        if not 200 <= status < 300:
            hint = _HINTS.get(status, "").format(token_file=self.token_file)
            if 300 <= status < 400:
                hint = (
                    "a redirect, which is never followed: name the API server itself ([attestation.kubernetes] server)"
                )
            raise ApiServerError(f"{self} answered with status {status}{': ' if hint else ''}{hint}", status=status)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise ApiServerError(f"{self} answered with something else than JSON (RFC 8259)") from None

    def _credentials(self) -> tuple[ssl.SSLContext, str]:
        """Blocking: both files, as they are now."""
        try:
            with self.token_file.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES + 1).strip()
        except OSError as exc:
            raise ApiServerError(f"{self.token_file} can not be read: {exc.strerror} (token_file)") from None
        if not token or len(token) > _MAX_TOKEN_BYTES or any(not 0x21 <= byte <= 0x7E for byte in token):
            raise ApiServerError(f"{self.token_file} does not hold a token (token_file)")
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file))
        except (OSError, ssl.SSLError) as exc:
            why = exc.strerror if exc.strerror and not isinstance(exc, ssl.SSLError) else "it holds no certificate"
            raise ApiServerError(f"{self.ca_file} can not be used: {why} (ca_file)") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context, token.decode("ascii")
