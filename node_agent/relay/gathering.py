"""One system call for all TLS records of a big frame.

OpenSSL gives each record of 16 KB to the kernel by itself, and TCP sends it as a
packet by itself; with 16 records in one write the same bytes cost both agents a
fifth less CPU.  ``ssl`` has no call for that, but OpenSSL has: a buffering BIO
(BIO_f_buffer(3)) in front of the socket.  It is there for the length of one
write, so everybody else finds the tunnel as it always was; only a write that the
kernel did not take at once leaves it there until the rest is out.

The SSL behind Python's object is read from memory.  That it lies where we think
is checked on each object: behind it must lie the object's own context.  Where it
does not, or where OpenSSL's functions are not found, ``gatherer`` returns None
and each record is written by itself.
"""

import _ssl
import ctypes
from typing import Any, Final

BIG_FRAME_BYTES: Final = 48 * 1024  # three records: for less it does not pay

_BUFFER_BYTES: Final = 272 * 1024  # the greatest frame with its 17 records' headers and tags, and room to spare
_SPARE_BUFFERS: Final = 4
_SSL_OFFSET: Final = (
    24  # PySSLSocket in Modules/_ssl.c, 3.10 to 3.13: the object's head, its socket, its SSL, its context
)
_BIO_CTRL_RESET: Final = 1  # openssl/bio.h, all of these
_BIO_CTRL_FLUSH: Final = 11
_BIO_CTRL_PENDING_WRITE: Final = 13
_BIO_C_SET_BUFF_SIZE: Final = 117
_BIO_FLAGS_SHOULD_RETRY: Final = 8
_FOR_WRITING: Final = 1

_VOID: Final = ctypes.c_void_p
_INT: Final = ctypes.c_int
_LONG: Final = ctypes.c_long


class _OpenSSL:
    """The functions of the library that ``ssl`` is linked with (as in identity/openssl.py); raises AttributeError."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_ssl.__file__)

        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        self.get_wbio = function("SSL_get_wbio", _VOID, _VOID)
        self.set0_wbio = function("SSL_set0_wbio", None, _VOID, _VOID)
        self.f_buffer = function("BIO_f_buffer", _VOID)
        self.new = function("BIO_new", _VOID, _VOID)
        self.free = function("BIO_free", _INT, _VOID)
        self.up_ref = function("BIO_up_ref", _INT, _VOID)
        self.push = function("BIO_push", _VOID, _VOID, _VOID)
        self.pop = function("BIO_pop", _VOID, _VOID)
        self.int_ctrl = function("BIO_int_ctrl", _LONG, _VOID, _INT, _LONG, _INT)
        self.ctrl = function("BIO_ctrl", _LONG, _VOID, _INT, _LONG, _VOID)
        self.test_flags = function("BIO_test_flags", _INT, _VOID, _INT)


try:
    _openssl: _OpenSSL | None = _OpenSSL()
except (OSError, AttributeError):
    _openssl = None
_spare: Final[list[int]] = []


def gatherer(tls: Any) -> "Gatherer | None":
    """Return what writes big frames to ``tls``, the object inside an SSLSocket; None if that can not be done here."""
    if _openssl is None or type(tls).__basicsize__ < _SSL_OFFSET + 16:
        return None
    behind = _VOID.from_address(id(tls) + _SSL_OFFSET + 8).value
    inside = _VOID.from_address(id(tls) + _SSL_OFFSET).value
    if behind != id(tls.context) or not inside:
        return None
    return Gatherer(openssl=_openssl, tls=tls, inside=inside)


class Gatherer:
    """Writes frames to one tunnel; owns the buffer while ``is_begun``."""

    __slots__ = ("_buffer", "_inside", "_is_encrypted", "_openssl", "_tls")

    def __init__(self, *, openssl: _OpenSSL, tls: Any, inside: int) -> None:
        self._openssl = openssl
        self._tls = tls  # keeps what is ``inside`` alive
        self._inside = inside
        self._buffer: int | None = None
        self._is_encrypted = False

    @property
    def is_begun(self) -> bool:
        """Whether a frame is on its way: nothing else may be written."""
        return self._buffer is not None

    @property
    def unsent_bytes(self) -> int:
        """Of the frame that is on its way, as the kernel will see them."""
        return 0 if self._buffer is None else int(self._openssl.ctrl(self._buffer, _BIO_CTRL_PENDING_WRITE, 0, None))

    def write(self, frame: memoryview) -> bool:
        """Encrypt and write ``frame``; False: it is encrypted, ``write`` has to be called again to write the rest.

        Raises what ``SSLSocket.write`` raises; after a "want" it has to be called again with the same frame.
        """
        if self._buffer is None:
            self._begin()
        if not self._is_encrypted:
            self._tls.write(frame)
            self._is_encrypted = True
        assert self._buffer is not None
        if self._openssl.ctrl(self._buffer, _BIO_CTRL_FLUSH, 0, None) <= 0:
            if self._openssl.test_flags(self._buffer, _BIO_FLAGS_SHOULD_RETRY):
                return False
            raise OSError("the tunnel broke while a frame was written")
        self._end()
        return True

    def _begin(self) -> None:
        openssl = self._openssl
        socket_bio = openssl.get_wbio(self._inside)
        openssl.up_ref(socket_bio)  # setting another gives one reference up: keep it for ``_end``
        self._buffer = buffer = _spare.pop() if _spare else self._new_buffer()
        openssl.push(buffer, socket_bio)
        openssl.up_ref(buffer)
        openssl.set0_wbio(self._inside, buffer)

    def _new_buffer(self) -> int:
        buffer: int | None = self._openssl.new(self._openssl.f_buffer())
        if buffer is None or self._openssl.int_ctrl(buffer, _BIO_C_SET_BUFF_SIZE, _BUFFER_BYTES, _FOR_WRITING) != 1:
            raise MemoryError
        return buffer

    def _end(self) -> None:
        openssl, buffer = self._openssl, self._buffer
        self._buffer = None
        self._is_encrypted = False
        openssl.set0_wbio(self._inside, openssl.pop(buffer))
        if len(_spare) < _SPARE_BUFFERS and buffer is not None:
            openssl.ctrl(buffer, _BIO_CTRL_RESET, 0, None)
            _spare.append(buffer)
        else:
            openssl.free(buffer)

    def __del__(self) -> None:
        if self._buffer is not None:  # the connection was cut within a frame
            self._end()
