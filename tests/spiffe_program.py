"""A program that speaks SPIFFE, as users write them: the ``spiffe`` package from PyPI.

    python spiffe_program.py COMMAND ARGUMENT...

Where the Workload API is, it knows from SPIFFE_ENDPOINT_SOCKET.  It prints JSON,
one value a line, and is a process of its own because gRPC has threads.

    svid                       the X.509-SVID: who, serial, chain, bundles
    watch COUNT                the same again for each of the next COUNT updates
    bundles                    the X.509 bundles and the JWT bundles
    jwt AUDIENCE...            a JWT-SVID
    validate AUDIENCE TOKEN    what the Workload API says of a token
    verify AUDIENCE TOKEN      what this library says of it, with the bundles that it fetched
    serve PORT                 TLS with client certificates, says who called; one connection
    call ADDRESS PORT          the other end of it
"""

import json
import os
import queue
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import JwtSvid, WorkloadApiClient, X509Source
from spiffe.workloadapi.x509_context import X509Context

_TIMEOUT_S: Final = 60.0


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def described(context: X509Context) -> dict[str, Any]:
    svid = context.default_svid
    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": f"{svid.leaf.serial_number:x}",
        "not_after": svid.leaf.not_valid_after_utc.timestamp(),
        "chain": [each.subject.rfc4514_string() for each in svid.cert_chain],
        "bundles": {str(each.trust_domain): len(each.x509_authorities) for each in context.x509_bundle_set.bundles},
    }


def svid(client: WorkloadApiClient) -> None:
    say(described(client.fetch_x509_context()))


def watch(client: WorkloadApiClient, count: str) -> None:
    seen: queue.Queue[X509Context | Exception] = queue.Queue()
    stop = client.stream_x509_contexts(seen.put, seen.put, retry_connect=False)
    for _ in range(int(count)):
        got = seen.get(timeout=_TIMEOUT_S)
        if isinstance(got, Exception):
            say({"error": str(got)})
            return
        say(described(got))
    stop.cancel()


def bundles(client: WorkloadApiClient) -> None:
    jwt = client.fetch_jwt_bundles().bundles
    say(
        {
            "x509": {
                str(each.trust_domain): len(each.x509_authorities) for each in client.fetch_x509_bundles().bundles
            },
            "jwt": {str(each.trust_domain): sorted(each.jwt_authorities) for each in jwt},
        }
    )


def jwt(client: WorkloadApiClient, *audience: str) -> None:
    found = client.fetch_jwt_svid(audience=set(audience))
    say({"spiffe_id": str(found.spiffe_id), "audience": sorted(found.audience), "token": found.token})


def validate(client: WorkloadApiClient, audience: str, token: str) -> None:
    found = client.validate_jwt_svid(token, audience)
    say({"spiffe_id": str(found.spiffe_id), "audience": sorted(found.audience)})


def verify(client: WorkloadApiClient, audience: str, token: str) -> None:
    for bundle in client.fetch_jwt_bundles().bundles:
        found = JwtSvid.parse_and_validate(token, bundle, {audience})
        say({"spiffe_id": str(found.spiffe_id)})


def context(source: X509Source, *, server_side: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    own = source.svid
    bundle = source.get_bundle_for_trust_domain(own.spiffe_id.trust_domain)
    assert bundle is not None
    made.load_verify_locations(cadata=b"".join(each.public_bytes(Encoding.DER) for each in bundle.x509_authorities))
    key = own.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(key + b"".join(each.public_bytes(Encoding.PEM) for each in own.cert_chain))
        file.flush()
        made.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return made


def peer(tls: ssl.SSLSocket) -> str:
    der = tls.getpeercert(binary_form=True)
    assert der is not None
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return str(names.value.get_values_for_type(x509.UniformResourceIdentifier)[0])


def serve(client: WorkloadApiClient, port: str) -> None:
    with X509Source(client, timeout_in_seconds=_TIMEOUT_S) as source, socket.create_server(("", int(port))) as listener:
        listener.settimeout(_TIMEOUT_S)
        say({"serving": str(source.svid.spiffe_id)})
        with context(source, server_side=True).wrap_socket(listener.accept()[0], server_side=True) as tls:
            tls.sendall(peer(tls).encode() + b"\n")
            say({"called_by": peer(tls)})


def call(client: WorkloadApiClient, address: str, port: str) -> None:
    with X509Source(client, timeout_in_seconds=_TIMEOUT_S) as source:
        with socket.create_connection((address, int(port)), _TIMEOUT_S) as plain:
            with context(source, server_side=False).wrap_socket(plain) as tls:
                say({"server": peer(tls), "i_am": tls.recv(4096).decode().strip()})


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    each.__name__: each for each in (svid, watch, bundles, jwt, validate, verify, serve, call)
}


def main() -> int:
    name, *arguments = sys.argv[1:]
    client = WorkloadApiClient(default_timeout=_TIMEOUT_S)
    try:
        COMMANDS[name](client, *arguments)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # gRPC's threads may be in a retry that takes seconds
