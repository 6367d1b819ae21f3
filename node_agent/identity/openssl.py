"""What the ``ssl`` module can not set: OpenSSL's own knobs, through ctypes.

Two things, both optional: the agent is correct without them and faster with
them.  Both use the very libraries that ``ssl`` is linked with, found through
``_ssl``'s own handle, so that a second OpenSSL in the process (the
``cryptography`` package has one) is never touched by mistake.

``prefer_aes128``: Python 3.11 has no call for the TLS 1.3 cipher suites.  An
OpenSSL configuration with the section ``system_default`` is applied to every
context made after it was loaded (config(5), "SSL Configuration").

``tune_context``: ``SSL_CTX`` is the first member of CPython's
``PySSLContext``.  The pointer is believed only if OpenSSL reads through it
what Python says about the context, before and after a change.
"""

import _ssl
import ctypes
import os
import ssl
import sys
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
_KNOWN_LAYOUTS: Final = ((3, 11), (3, 12), (3, 13))
# openssl/ssl.h
_SSL_CTRL_MODE: Final = 33
_SSL_CTRL_CLEAR_MODE: Final = 78
_SSL_CTRL_SET_READ_AHEAD: Final = 41
_SSL_MODE_RELEASE_BUFFERS: Final = 0x10
_VERIFY_MODES: Final = {ssl.CERT_NONE: 0, ssl.CERT_OPTIONAL: 1, ssl.CERT_REQUIRED: 3}


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


def tune_context(context: ssl.SSLContext, *, release_buffers: bool, read_ahead: bool) -> bool:
    """Set two buffer policies of a context, before any connection is made from it.

    Args:
        release_buffers: give the 16 + 16 KiB record buffers back while a
            connection is idle (Python's default): less memory, an allocation a record.
        read_ahead: read as much as there is, not one record header and then
            its body: half the system calls, but bytes wait inside OpenSSL, so
            a socket that is not readable may still have data (ask ``pending``).

    Returns:
        False if nothing was changed, because this interpreter is not one whose layout is known.
    """
    pointer = _ssl_ctx(context)
    control = _function("SSL_CTX_ctrl", ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
    if pointer is None or control is None:
        return False
    mode = _SSL_CTRL_MODE if release_buffers else _SSL_CTRL_CLEAR_MODE
    control(pointer, mode, _SSL_MODE_RELEASE_BUFFERS, None)
    control(pointer, _SSL_CTRL_SET_READ_AHEAD, int(read_ahead), None)
    return True


def _ssl_ctx(context: ssl.SSLContext) -> int | None:
    """Return the ``SSL_CTX *`` of a context, or None if it can not be trusted to be one."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _KNOWN_LAYOUTS:
        return None
    get_mode = _function("SSL_CTX_get_verify_mode", ctypes.c_int, ctypes.c_void_p)
    get_options = _function("SSL_CTX_get_options", ctypes.c_uint64, ctypes.c_void_p)
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if get_mode is None or get_options is None or not pointer:
        return None

    def agrees() -> bool:
        wanted = _VERIFY_MODES[context.verify_mode]
        return bool(get_mode(pointer) == wanted and get_options(pointer) & 0xFFFFFFFF == context.options & 0xFFFFFFFF)

    if not agrees():
        return None
    before = context.options
    context.options = before ^ ssl.OP_NO_TICKET
    try:
        follows = agrees()
    finally:
        context.options = before
    return pointer if follows and agrees() else None


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
