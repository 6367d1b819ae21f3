"""The status codes of gRPC that we use."""

from enum import IntEnum


class GrpcStatus(IntEnum):
    """The status codes that we use; numbers and meaning are gRPC's."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
