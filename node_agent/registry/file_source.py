"""The edge: a watched directory of manifests becomes updates of the registry.

Two ways to notice a change, each making up for the other:

* inotify tells within a millisecond which file was closed or renamed, and only
  that one is read: a change costs the same among 10 files and among 100,000;
* stat signatures are compared every ``poll_interval_s``, or more rarely where
  inotify works: this finds what inotify can not see (symbolic links that were
  pointed elsewhere, as Kubernetes does with a mounted ConfigMap; network file
  systems; an overflowed queue; the directory itself replaced).

A file that is being rewritten in place must not be read half: when only its
signature tells of the change, it is read once two comparisons agree.

Files are read and parsed in a worker thread, one step at a time; ``on_update``
is called in trio's thread.  No file and no directory, however broken, ends the
source: problems are in the ``DirectoryState``, the last good version in force.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ca.manifests import DirectoryState, ManifestObject, ObjectKey, read_directory
from ca.manifests.directory import FileSignature, is_manifest_name, scan_directory
from node_agent.registry.changes import Update
from node_agent.registry.good_copies import GoodCopies
from node_agent.registry.inotify import DirectoryWatch

OnUpdate = Callable[[Update, DirectoryState], None]

_POLLS_PER_SCAN: Final = 10  # with inotify at work; in between only the directory itself is looked at
_SCAN_COST_FACTOR: Final = 100  # comparing signatures takes at most this part of a core's time


class FileSource:
    """Reads a directory and follows it.

    Args:
        directory: of manifests; subdirectories are not read.
        poll_interval_s: how often stat signatures are compared without inotify, and how often the
            directory itself is looked at with it.
        copies: where the last good versions of policies outlive the process.
    """

    def __init__(
        self, directory: Path | str, *, poll_interval_s: float = 0.2, copies: GoodCopies | None = None
    ) -> None:
        self._directory = Path(directory)
        self._copies = copies
        self._poll_interval_s = poll_interval_s
        self._state = DirectoryState()
        self._watch: DirectoryWatch | None = None
        self._watched: tuple[int, int] | None = None  # device and inode of the watched directory
        self._unsettled: dict[str, FileSignature | None] = {}
        self._scan_due_at = 0.0

    @property
    def state(self) -> DirectoryState:
        """What is in force and what is wrong, as last told to ``on_update``."""
        return self._state

    async def run(self, on_update: OnUpdate, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the directory until cancelled; ``on_update`` has been called once before this reports started.

        ``on_update`` gets every step that read something new or found a problem
        (and the first, even if empty); it must not block.
        """
        try:
            self._rewatch()
            await self._step(on_update, None, first=True)
            task_status.started()
            while True:
                names = await self._wait()
                await self._step(on_update, names)
        finally:
            self._unwatch()

    async def _wait(self) -> frozenset[str] | None:
        """Wait for a reason to look; returns the files to read, or None for all that changed."""
        while True:
            if self._rewatch():
                return None
            if self._watch is None:
                await trio.sleep(self._poll_interval_s)
                return None
            with trio.move_on_after(self._poll_interval_s):
                await trio.lowlevel.wait_readable(self._watch.fileno())
                events = self._watch.read()
                # "..data" is the link that Kubernetes swaps when a mounted ConfigMap changes.
                if events.lost:
                    self._unwatch()
                    return None
                if any(name.startswith("..") for name in events.complete):
                    return None
                complete = events.complete | {name for name in events.created if self._is_link(name)}
                if names := frozenset(filter(is_manifest_name, complete)):
                    return names
            if self._unsettled or trio.current_time() >= self._scan_due_at:
                return None

    async def _step(self, on_update: OnUpdate, names: frozenset[str] | None, *, first: bool = False) -> None:
        before = self._state
        began = trio.current_time()
        after = await trio.to_thread.run_sync(partial(self._read_and_keep, names, first=first))
        if names is None:
            took_s = trio.current_time() - began
            interval_s = self._poll_interval_s * _POLLS_PER_SCAN
            self._scan_due_at = trio.current_time() + max(interval_s, took_s * _SCAN_COST_FACTOR)
        update = _update(before, after)
        self._state = after = replace(after, touched=frozenset())
        seen_anything = after.files is not before.files or after.directory_problem != before.directory_problem
        if first or seen_anything:
            on_update(update, after)

    def _read_and_keep(self, names: frozenset[str] | None, *, first: bool) -> DirectoryState:
        """Runs in a worker thread."""
        after = self._read(names, settle=not first)
        if self._copies is not None:
            self._copies.keep(self._directory, self._state.files, after.files)
            if first:
                after = self._copies.heal(after)
        return after

    def _read(self, names: frozenset[str] | None, *, settle: bool) -> DirectoryState:
        """Runs in a worker thread."""
        if names is not None and self._directory.is_dir():
            for name in names:
                self._unsettled.pop(name, None)
            return read_directory(self._directory, self._state, names=names)
        try:
            seen = scan_directory(self._directory)
        except OSError:
            return read_directory(self._directory, self._state)
        if settle:
            self._hold_back_unsettled(seen)
        return read_directory(self._directory, self._state, seen=seen)

    def _hold_back_unsettled(self, seen: dict[str, FileSignature | None]) -> None:
        """Leave files that may be in the middle of a rewrite as they were, until the next scan."""
        unsettled: dict[str, FileSignature | None] = {}
        for name, signature in seen.items():
            known = self._state.files.get(name)
            if signature is None or (known is not None and known.signature == signature):
                continue
            renamed = known is not None and known.signature is not None and known.signature.inode != signature.inode
            if not renamed and self._unsettled.get(name) != signature:
                unsettled[name] = signature
        for name in unsettled:
            known = self._state.files.get(name)
            if known is not None:
                seen[name] = known.signature
            else:
                del seen[name]
        self._unsettled = unsettled

    def _is_link(self, name: str) -> bool:
        """Whether the file was made with its content at once: a symbolic or a hard link."""
        try:
            status = os.lstat(self._directory / name)
        except OSError:
            return False
        return stat.S_ISLNK(status.st_mode) or status.st_nlink > 1

    def _rewatch(self) -> bool:
        """Watch the directory that the path leads to now; True if that is not the one of before."""
        try:
            status = os.stat(self._directory)
            identity = (status.st_dev, status.st_ino)
        except OSError:
            identity = None
        if identity == self._watched and (self._watch is not None or identity is None):
            return False
        self._unwatch()
        if identity is not None:
            try:
                self._watch = DirectoryWatch(self._directory)
            except OSError:
                pass  # no more watches, or gone again: signatures alone
        changed, self._watched = identity != self._watched, identity
        return changed

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _update(before: DirectoryState, after: DirectoryState) -> Update:
    upserts: list[ManifestObject] = []
    deletes: list[ObjectKey] = []
    for key in sorted(after.touched):
        is_now = after.objects.get(key)
        if is_now is None:
            if key in before.objects:
                deletes.append(key)
        elif is_now != before.objects.get(key):
            upserts.append(is_now)
    return Update(upserts=tuple(upserts), deletes=tuple(deletes))
