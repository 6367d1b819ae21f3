"""The last good version of every file that holds security policies, for when the agent starts.

While the agent runs, a file that becomes wrong keeps its last good version in
force (ca/manifests/directory.py).  A restart would forget that version, and with
it the policies: what they deny would be open, because of a typing error.  So
files with such policies are kept as they were when they were last good, and
taken in again, at the start only, for a file that is there and can not be read.

Who can write here decides about access, as who can write the manifests does.
All of it is disk: it runs in the source's worker thread.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ca.manifests import (
    AuthorizationPolicy,
    DirectoryState,
    ManifestError,
    ManifestFile,
    ManifestObject,
    PeerAuthentication,
    parse_manifests,
)
from ca.manifests.directory import with_objects

_log: Final = logging.getLogger("ringfence.registry")

_SECURITY: Final = (AuthorizationPolicy, PeerAuthentication)
_TEMPORARY: Final = ".new"  # no manifest's name ends so


class GoodCopies:
    """Copies in a ``directory`` of our own, which is made when the first one is kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def heal(self, state: DirectoryState) -> DirectoryState:
        """What was first read, with the last good versions of files that are broken; forgets files that are gone."""
        if state.directory_problem is not None:
            return state
        found: dict[str, tuple[ManifestObject, ...]] = {}
        try:
            names = sorted(os.listdir(self._directory)) if self._is_safe(self._directory) else []
        except OSError:
            return state  # nothing was ever kept
        for name in names:
            file = state.files.get(name)
            if file is None or (file.problem is None and not _has_policies(file)):
                self._forget(name)
            elif file.problem is not None and (objects := self._read(name)):
                _log.warning("%s: its last good version, from before the start, is in force", file.problem)
                found[name] = objects
        return with_objects(state, found) if found else state

    def keep(self, source: Path, before: Mapping[str, ManifestFile], after: Mapping[str, ManifestFile]) -> None:
        """Copy what is good and new, and forget what is gone."""
        for name in before.keys() | after.keys():
            was, file = before.get(name), after.get(name)
            if file is was:
                continue
            if file is not None and file.problem is not None:
                continue
            if file is not None and _has_policies(file):
                self._copy(source / name, name, file.sha256)
            elif was is not None and _has_policies(was):
                self._forget(name)

    def _copy(self, path: Path, name: str, sha256: str) -> None:
        kept = self._directory / name
        temporary = self._directory / f"{name}{_TEMPORARY}"
        try:
            if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == sha256:
                return
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                return  # changed again: the next step has it
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as copy:
                copy.write(content)
            temporary.replace(kept)
        except OSError as error:
            _log.warning(
                "%s: no copy of this good version could be kept: %s; if it is broken when the agent starts, its "
                "policies are not in force",
                path,
                error.strerror or error,
            )

    def _read(self, name: str) -> tuple[ManifestObject, ...]:
        path = self._directory / name
        try:
            if not self._is_safe(path):
                return ()
            return parse_manifests(path.read_text(encoding="utf-8-sig"), origin=str(path)).objects
        except (OSError, UnicodeDecodeError, ManifestError) as error:
            _log.warning("%s: the copy of the last good version can not be used: %s", path, error)
            return ()

    def _is_safe(self, path: Path) -> bool:
        """Whether only root and this agent can have written it."""
        status = path.lstat()
        ours = status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not ours:
            _log.warning("%s can be written by others, so it is not used: chmod go-w, chown root", path)
        return ours

    def _forget(self, name: str) -> None:
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: a copy that is not needed can not be removed: %s", self._directory / name, error.strerror)


def _has_policies(file: ManifestFile) -> bool:
    return any(isinstance(each, _SECURITY) for each in file.objects)
