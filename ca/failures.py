"""Words for what the network and the peer can do to a request: the door from their exceptions to ours."""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ca.errors import CaProtocolError, CaUnreachable, WireError
from ca.svid import SvidError


@contextmanager
def translated(where: str, deadline_s: float) -> Iterator[None]:
    """Turn foreign exceptions into CaUnreachable and CaProtocolError; ``where`` begins the text."""
    try:
        yield
    except trio.TooSlowError as error:
        raise CaUnreachable(f"{where} did not answer within {deadline_s:g} s") from error
    except SvidError as error:
        raise CaUnreachable(f"{where} has not a CA's certificate: {error}") from error
    except (OSError, trio.BrokenResourceError) as error:
        raise CaUnreachable(f"{where}: {why(error)}") from error
    except WireError as error:
        raise CaProtocolError(f"{where} sent something else than a reply: {error}") from error


def why(error: BaseException) -> str:
    """The innermost cause in words: trio wraps ``ssl`` and socket errors in errors without a text of their own.

    Never the text of a TLS error, which could quote the peer.
    """
    while True:
        if isinstance(error, BaseExceptionGroup):  # one for each address that was tried
            error = error.exceptions[0]
        elif error.__cause__ is not None and getattr(error, "errno", None) is None:
            error = error.__cause__
        else:
            break
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason}"
    if isinstance(error, socket.gaierror):
        return f"its name can not be resolved: {error.strerror}"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
