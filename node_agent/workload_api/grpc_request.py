"""The head and the framing of a gRPC request, and the texts of its answer.

Sans-I/O.  Protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from node_agent.workload_api.grpc_status import GrpcStatus

PREFIX_BYTES: Final = 5  # compressed flag and length, in front of each message
_METADATA_KEY: Final = b"workload.spiffe.io"
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?(;.*)?")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])", re.ASCII)
_TIMEOUT_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """What the headers say; ``refused`` is what is wrong with them, to be said when the request has arrived in full."""

    path: str
    has_metadata: bool
    timeout_s: float | None = None
    refused: tuple[GrpcStatus, str] | None = None
    http_status: int = 200


def read_head(headers: Mapping[bytes, bytes]) -> RequestHead:
    """Judge the headers of a request."""
    path = headers.get(b":path", b"").decode("ascii", "replace")
    has_metadata = headers.get(_METADATA_KEY) == b"true"  # Workload Endpoint 3: "(case sensitive)"
    timeout_s, http_status = None, 200
    refused: tuple[GrpcStatus, str] | None = None
    if headers.get(b":method") != b"POST":
        http_status, refused = 405, (GrpcStatus.UNIMPLEMENTED, "gRPC uses the method POST")
    elif not _CONTENT_TYPE.fullmatch(headers.get(b"content-type", b"")):
        # "If Content-Type does not begin with "application/grpc", gRPC servers SHOULD respond with HTTP status of 415"
        http_status, refused = 415, (GrpcStatus.INVALID_ARGUMENT, "content-type has to be application/grpc")
    elif headers.get(b"grpc-encoding", b"identity") != b"identity":
        refused = (GrpcStatus.UNIMPLEMENTED, "compressed requests are not supported: use grpc-encoding identity")
    elif (wish := headers.get(b"grpc-timeout")) is not None:
        found = _TIMEOUT.fullmatch(wish)
        if found is None:
            refused = (GrpcStatus.INVALID_ARGUMENT, "grpc-timeout is malformed")
        else:
            timeout_s = int(found[1]) * _TIMEOUT_UNITS_S[found[2]]
    return RequestHead(
        path=path, has_metadata=has_metadata, timeout_s=timeout_s, refused=refused, http_status=http_status
    )


def refuse_framing(request: bytes) -> tuple[GrpcStatus, str] | None:
    """Why the body is not exactly one uncompressed message, or None."""
    if len(request) < PREFIX_BYTES or int.from_bytes(request[1:PREFIX_BYTES], "big") != len(request) - PREFIX_BYTES:
        return GrpcStatus.INVALID_ARGUMENT, "the request has to be exactly one message"
    if request[0] != 0:
        return GrpcStatus.UNIMPLEMENTED, "compressed requests are not supported"
    return None


def percent_encoded(text: str) -> str:
    """PROTOCOL-HTTP2 "Responses": printable ASCII but the percent sign stands for itself."""
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in text.encode())
