"""The newest trust between two runs of the agent: one file, public, but nobody else's to write.

After the root was rotated, the bundle that the operator once copied to the node
is of no use any more; this file is.  What was revoked is in it too, so that an
agent which starts while the CA is down refuses whom it refused before.

The operator's word is the newer one when ``bundle_file`` is no longer what it
was when this file was written: then its roots count, and the revocations stay.
"""

import logging
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ca.errors import CaProtocolError, WireError
from ca.trust import Trust
from ca.wire import MAX_FRAME_BYTES, pack, unpack
from node_agent.errors import AgentError
from node_agent.identity.private_file import write_private
from node_agent.identity.trust import TrustStore

_log: Final = logging.getLogger("ringfence.identity")
_FILE_NAME: Final = "trust"
_MAX_BYTES: Final = 2 * MAX_FRAME_BYTES
_WRITABLE_BY_OTHERS: Final = 0o022


class TrustFile:
    """The file in ``directory``.  Calls block for a moment: they touch the file system."""

    def __init__(self, *, directory: Path, configured_pem: bytes) -> None:
        """Make the directory if it is missing; ``configured_pem`` is what ``bundle_file`` holds.

        Raises:
            AgentError: it can not be made, or others may write there.
        """
        self._path = directory / _FILE_NAME
        self._configured = sha256(configured_pem).digest()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_ours(directory)
        except OSError as error:
            raise AgentError(f"[agent] state_dir: {directory}: {error.strerror}") from error

    def restore(self, trust: TrustStore) -> bool:
        """Put in force what the last run knew; returns whether there was something.

        Raises:
            AgentError: somebody else may have written it.
        """
        try:
            _require_ours(self._path)
            fields = unpack(self._path.read_bytes(), _MAX_BYTES)
            found, configured = _parsed(fields)
            if configured != self._configured:
                _log.info("[ca] bundle_file is another one than before: its roots count, not those of %s", self._path)
                found = replace(trust.trust, revocations=found.revocations)
            trust.restore(found)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise AgentError(f"[agent] state_dir: {self._path}: {error.strerror}") from error
        except (WireError, CaProtocolError) as error:
            _log.warning("%s can not be used, the roots of [ca] bundle_file count: %s", self._path, error)
            return False
        return True

    def save(self, trust: Trust) -> None:
        """Replace what is stored.

        Raises:
            OSError: it could not be written; what was there before is still there.
        """
        data = pack({"configured": self._configured, "trust": trust.to_wire()})
        write_private(self._path, data)


def _parsed(fields: Any) -> tuple[Trust, bytes]:
    """Raises WireError: it is not what ``save`` writes."""
    if not isinstance(fields, dict) or not isinstance(fields.get("trust"), dict):
        raise WireError("it does not hold trust")
    configured = fields.get("configured")
    return Trust.from_wire(fields["trust"]), configured if isinstance(configured, bytes) else b""


def _require_ours(path: Path) -> None:
    """Roots decide whom we believe: who can write them can be anybody.  Raises AgentError, OSError."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _WRITABLE_BY_OTHERS:
        raise AgentError(
            f"[agent] state_dir: {path} can be written by others than root and this agent, and decides whom the agent "
            f"trusts: look who did it, then remove it, or run: chown root {path}; chmod go-w {path}"
        )
