"""What the ``ssl`` module can not set: the order of the TLS 1.3 cipher suites, through ctypes.

The agent is correct without it and faster with it.  Python 3.11 has no call for
it; an OpenSSL configuration with the section ``system_default`` is applied to
every context made after it was loaded (config(5), "SSL Configuration").  It is
loaded into the very library that ``ssl`` is linked with, found through ``_ssl``'s
own handle, so that a second OpenSSL in the process (the ``cryptography`` package
has one) is never touched by mistake.
"""

import _ssl
import ctypes
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

_DEFAULT_SUITES: Final = ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256")
_OUR_SUITES: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_CONFIGURATION: Final = f"""openssl_conf = ringfence
[ringfence]
ssl_conf = ringfence_ssl
[ringfence_ssl]
system_default = ringfence_default
[ringfence_default]
Ciphersuites = {":".join(_OUR_SUITES)}
"""


def prefer_aes128() -> bool:
    """Put AES-128-GCM first in every context made from now on; returns whether it is.

    Changes nothing where the CPU has no AES instructions (ChaCha20 is then the
    better choice) and where the machine's own OpenSSL configuration has
    already chosen: a system-wide policy stands.
    """
    if _suites()[: len(_OUR_SUITES)] == _OUR_SUITES:
        return True
    if not _cpu_has_aes() or _suites()[: len(_DEFAULT_SUITES)] != _DEFAULT_SUITES:
        return False
    fd = os.memfd_create("ringfence-openssl.cnf", os.MFD_CLOEXEC)
    try:
        os.write(fd, _CONFIGURATION.encode())
        load = _function("CONF_modules_load_file", ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong)
        if load is None or load(f"/proc/self/fd/{fd}".encode(), None, 0) != 1:
            return False
    finally:
        os.close(fd)
    return _suites()[: len(_OUR_SUITES)] == _OUR_SUITES


def _function(name: str, result: type, *arguments: type) -> Callable[..., int] | None:
    """Find a function in the OpenSSL that ``ssl`` uses; dlsym on ``_ssl`` looks into what it is linked with."""
    try:
        function = getattr(ctypes.CDLL(getattr(_ssl, "__file__", None)), name)
    except (OSError, AttributeError):
        return None
    function.restype = result
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


def _suites() -> tuple[str, ...]:
    return tuple(cipher["name"] for cipher in ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ciphers())


def _cpu_has_aes() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    # x86 calls the line "flags", Arm "Features"; one core speaks for all.
    return any("aes" in line.split() for line in lines if line.startswith(("flags", "Features")))
