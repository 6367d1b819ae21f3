"""A Kubernetes API server for tests: HTTPS, TokenReview and pods, as kube-apiserver 1.34 answers.

The answers were taken from a real one, to the letter where they decide: 201 and
``status.error`` for a token that is not good, 401 for a caller that is not
known, 403 for one that may not ask, an empty ``status.user`` where nobody was
authenticated.  ``misbehave`` makes it answer something else, or nothing.
"""

import base64
import json
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

import h11
import trio
import trustme
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
_EXTRA: Final = "authentication.kubernetes.io/"
AUDIENCE: Final = "ringfence-ca"


class Misbehaviour(Enum):
    HANGS = "accepts and never answers"
    CLOSES = "closes without an answer"
    CUT_OFF = "ends in the middle of the answer"
    GARBAGE = "does not speak HTTP"
    NOT_JSON = "answers with a page"
    DEEP_JSON = "answers with JSON that is nested a hundred thousand times"
    ENDLESS = "answers with more than anybody wants"
    REDIRECTS = "sends the caller, with its token, somewhere else"
    FAILS = "answers 500"
    OVERLOADED = "answers 429"


@dataclass(kw_only=True)
class FakePod:
    namespace: str
    name: str
    node: str
    account: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))


class KubeApiServer:
    """State and answers; ``kube_api_server`` serves it."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.ca_file = directory / "kube-ca.crt"
        self.ca_file.write_bytes(self.authority.cert_pem.bytes())
        self.token_file = directory / "authority.token"
        self.callers = {self.new_caller_token()}
        self.may_review = True
        self.may_get_pods = True
        self.knows_nodes = True  # since 1.30
        self.misbehave: Misbehaviour | None = None
        self.edit: Callable[[dict[str, Any]], object] = lambda answer: None
        self.pods: dict[tuple[str, str], FakePod] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.port = 0
        self._key = ec.generate_private_key(ec.SECP256R1())

    def new_caller_token(self) -> str:
        """Write the token of the authority's own service account, as the kubelet does when it rotates it."""
        token = f"caller-{uuid.uuid4()}"
        self.token_file.write_text(token + "\n")
        return token

    def pod(self, name: str, *, node: str, account: str = "ringfence-agent", namespace: str = "ringfence") -> FakePod:
        made = FakePod(namespace=namespace, name=name, node=node, account=account)
        self.pods[namespace, name] = made
        return made

    def token(
        self,
        pod: FakePod,
        *,
        audience: str = AUDIENCE,
        expires_in_s: float = 3600,
        bound: bool = True,
        **claims: object,
    ) -> bytes:
        """What the kubelet projects into ``pod``: a signed JWT."""
        private: dict[str, Any] = {"namespace": pod.namespace, "serviceaccount": {"name": pod.account}}
        if bound:
            private |= {"pod": {"name": pod.name, "uid": pod.uid}, "node": {"name": pod.node}}
        payload = {"aud": [audience], "exp": time.time() + expires_in_s, "kubernetes.io": private, **claims}
        signed = _part({"alg": "ES256", "kid": "1"}) + b"." + _part(payload)
        signature = self._key.sign(signed, ec.ECDSA(hashes.SHA256()))
        return signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        self.requests.append((method, target, headers))
        if headers.get("authorization", "").removeprefix("Bearer ") not in self.callers:
            return _status(401, "Unauthorized")
        if (method, target) == ("POST", _REVIEWS):
            if not self.may_review:
                return _status(403, "tokenreviews.authentication.k8s.io is forbidden")
            spec = json.loads(body)["spec"]
            if not spec["token"]:
                return _status(400, "token is required for TokenReview in authentication")
            document = {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": spec}
            document["status"] = self._review(spec["token"].encode(), spec["audiences"])
            self.edit(document)
            return 201, document
        namespace, _, name = target.removeprefix("/api/v1/namespaces/").partition("/pods/")
        if not self.may_get_pods:
            return _status(403, f'pods "{name}" is forbidden')
        pod = self.pods.get((namespace, name))
        if method != "GET" or pod is None:
            return _status(404, f'pods "{name}" not found')
        document = {
            "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "spec": {"nodeName": pod.node, "serviceAccountName": pod.account},
        }
        self.edit(document)
        return 200, document

    def _review(self, token: bytes, wanted: list[str]) -> dict[str, Any]:
        try:
            signed, _, signature = token.rpartition(b".")
            self._key.public_key().verify(_decoded(signature), signed, ec.ECDSA(hashes.SHA256()))
            claims = json.loads(_decoded(signed.partition(b".")[2]))
        except (ValueError, InvalidSignature):
            return {"user": {}, "error": "invalid bearer token"}
        if claims["exp"] <= time.time():
            return {"user": {}, "error": "[invalid bearer token, service account token has expired]"}
        audiences = [each for each in claims["aud"] if each in wanted]
        if not audiences:
            theirs, ours = json.dumps(claims["aud"]), json.dumps(wanted)
            why = f"[invalid bearer token, token audiences {theirs} is invalid for the target audiences {ours}]"
            return {"user": {}, "error": why}
        private = claims["kubernetes.io"]
        account = f"system:serviceaccount:{private['namespace']}:{private['serviceaccount']['name']}"
        extra = {_EXTRA + "credential-id": ["JTI=1"]}
        if "pod" in private:
            pod = self.pods.get((private["namespace"], private["pod"]["name"]))
            if pod is None or pod.uid != private["pod"]["uid"]:
                return {"user": {}, "error": "[invalid bearer token, service account token has been invalidated]"}
            extra |= {_EXTRA + "pod-name": [pod.name], _EXTRA + "pod-uid": [pod.uid]}
            if self.knows_nodes:
                extra[_EXTRA + "node-name"] = [private["node"]["name"]]
        return {"authenticated": True, "user": {"username": account, "extra": extra}, "audiences": audiences}

    async def serve(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """One connection: one request, one answer."""
        connection = h11.Connection(h11.SERVER)
        try:
            method, target, headers, body = await _request(stream, connection)
            status, document = self.answer(method, target, headers, body)
            await stream.send_all(await self._bytes(connection, status, document))
            if self.misbehave is Misbehaviour.ENDLESS:
                while True:
                    await stream.send_all(b"a" * 65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the caller has gone
        finally:
            await trio.aclose_forcefully(stream)

    async def _bytes(self, connection: h11.Connection, status: int, document: dict[str, Any]) -> bytes:
        body, headers = json.dumps(document).encode(), [("Content-Type", "application/json")]
        match self.misbehave:
            case Misbehaviour.HANGS:
                await trio.sleep_forever()
            case Misbehaviour.CLOSES:
                return b""
            case Misbehaviour.GARBAGE:
                return b"SSH-2.0-OpenSSH_9.2\r\n" * 20
            case Misbehaviour.NOT_JSON:
                body = b"<html>Sign in</html>"
            case Misbehaviour.DEEP_JSON:
                body = b"[" * 100_000
            case Misbehaviour.REDIRECTS:
                status, headers = 307, [("Location", f"https://127.0.0.1:{self.port}/elsewhere")]
            case Misbehaviour.FAILS:
                status, body = 500, b"the token was caller-x"
            case Misbehaviour.OVERLOADED:
                status = 429
            case Misbehaviour.CUT_OFF | Misbehaviour.ENDLESS | None:
                pass
        length = "100000000000" if self.misbehave is Misbehaviour.ENDLESS else str(len(body))
        if self.misbehave is Misbehaviour.CUT_OFF:
            length = str(len(body) + 1)
        head = connection.send(h11.Response(status_code=status, headers=[*headers, ("Content-Length", length)]))
        return (head or b"") + (body if self.misbehave is not Misbehaviour.ENDLESS else b"")


async def _request(
    stream: trio.SSLStream[trio.SocketStream], connection: h11.Connection
) -> tuple[str, str, dict[str, str], bytes]:
    head, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return head.method.decode(), head.target.decode(), headers, body
        else:
            raise trio.BrokenResourceError


@asynccontextmanager
async def kube_api_server(
    directory: Path, *, name: str = "127.0.0.1", listening: socket.socket | None = None
) -> AsyncIterator[KubeApiServer]:
    """Serve on loopback, with a certificate for ``name``; on ``listening`` where that is given (closed here)."""
    server = KubeApiServer(directory)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.authority.issue_cert(name).configure_cert(context)
    async with trio.open_nursery() as nursery:
        if listening is None:
            (transport,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        else:
            transport = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        server.port = transport.socket.getsockname()[1]
        listener = trio.SSLListener(transport, context, https_compatible=True)
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


def _part(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def _decoded(part: bytes) -> bytes:
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
