"""The node's key and certificate between two runs of the agent: one file, never in clear on a disk.

With a passphrase the key is encrypted (PKCS #8).  Without one the directory
has to be memory: tmpfs or ramfs.  Anything else stops the agent, because a
key that was written in clear once can not be taken back.

Key and chain are one file, replaced by renaming, so that they always fit.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ca.csr import key_to_pem
from ca.tls import KeyAndChain
from node_agent.errors import AgentError
from node_agent.identity.private_file import write_private

_FILE_NAME: Final = "node.pem"
_MEMORY_FILE_SYSTEMS: Final = (0x01021994, 0x858458F6)  # TMPFS_MAGIC, RAMFS_MAGIC: statfs(2)


class NodeKeyStore:
    """Where the node's key lives.  All calls block for a moment: they touch the file system."""

    def __init__(self, *, directory: Path, passphrase_file: Path | None) -> None:
        """Make the directory if it is missing.

        Raises:
            AgentError: it can not be made, it is on a disk and there is no
                passphrase, or the passphrase can not be read.
        """
        self._path = directory / _FILE_NAME
        self._passphrase = None if passphrase_file is None else _read_passphrase(passphrase_file)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            in_memory = _is_memory(directory)
        except OSError as error:
            raise AgentError(f"[ca] node_key_dir: {directory}: {error.strerror}") from error
        if self._passphrase is None and not in_memory:
            raise AgentError(
                f"[ca] node_key_dir: {directory} is on a disk, where the node's key would be in clear: "
                "choose a directory on a tmpfs, such as /run/ringfence/node, or set node_key_passphrase_file"
            )

    def load(self) -> KeyAndChain | None:
        """Return what the last run stored, or None.

        Raises:
            AgentError: there is something that can not be read.
        """
        try:
            pem = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AgentError(f"[ca] node_key_dir: {self._path}: {error.strerror}") from error
        try:
            key = load_pem_private_key(pem, self._passphrase)
            chain = tuple(x509.load_pem_x509_certificates(pem))
        except (ValueError, TypeError) as error:
            raise AgentError(
                f"[ca] node_key_dir: {self._path} can not be read: {error}. Wrong node_key_passphrase_file? "
                "If the key is lost, remove the file and give the agent a new join token"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != chain[0].public_key():
            raise AgentError(f"[ca] node_key_dir: {self._path}: key and certificate do not belong together: remove it")
        return KeyAndChain(key=key, chain=chain)

    def save(self, own: KeyAndChain) -> None:
        """Replace what is stored.

        Raises:
            OSError: it could not be written; what was there before is still there.
        """
        pem = key_to_pem(own.key, self._passphrase)
        pem += b"".join(certificate.public_bytes(Encoding.PEM) for certificate in own.chain)
        write_private(self._path, pem)


def _read_passphrase(path: Path) -> bytes:
    try:
        passphrase = path.read_bytes().strip()
    except OSError as error:
        raise AgentError(f"[ca] node_key_passphrase_file: {path}: {error.strerror}") from error
    if not passphrase:
        raise AgentError(f"[ca] node_key_passphrase_file: {path} is empty: write a passphrase into it")
    return passphrase


def _is_memory(directory: Path) -> bool:
    """Whether a directory is in memory; statfs(2) through ctypes, because os.statvfs has no type."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.statfs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    answer = ctypes.create_string_buffer(512)  # struct statfs is 120 bytes; its first member is f_type
    if libc.statfs(os.fsencode(directory), answer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    kind = ctypes.c_ulong.from_buffer(answer).value & 0xFFFFFFFF
    return kind in _MEMORY_FILE_SYSTEMS
