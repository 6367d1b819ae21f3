"""A directory of manifest files, read step by step, with its last good state.

Each step takes the state before and returns the state after; nothing is
changed in place, so a state can be read by one thread while another makes the
next.  A step reads only files whose stat signature changed (or that the caller
names), so that one change among 100,000 objects costs milliseconds.

What stays in force:

* a file that is broken or can not be read: its last good version;
* a directory that is gone: everything, until it is back;
* an object in two files: the file whose name sorts first.

A file that is removed takes its objects with it.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from ca.manifests.documents import MAX_FILE_BYTES
from ca.manifests.errors import ManifestError, ManifestProblem
from ca.manifests.names import ObjectKey
from ca.manifests.objects import ManifestObject
from ca.manifests.parse import parse_manifests

_SUFFIXES: Final = (".yaml", ".yml", ".json")


class FileSignature(NamedTuple):
    """What stat says about a file; another signature means another content."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file as it was last seen.

    ``sha256`` (hex) is of the content on disk, ``objects`` of its last good
    version; they are of the same content where ``problem`` is None.
    """

    signature: FileSignature | None
    sha256: str
    objects: tuple[ManifestObject, ...] = ()
    skipped: tuple[str, ...] = ()
    problem: ManifestProblem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryState:
    """Everything in force, and everything that is wrong.

    ``touched`` names the objects that this step may have added, changed or
    removed.  The mappings must not be changed by whoever reads them.
    """

    files: Mapping[str, ManifestFile] = field(default_factory=dict)
    objects: Mapping[ObjectKey, ManifestObject] = field(default_factory=dict)
    duplicates: Mapping[ObjectKey, tuple[str, ...]] = field(default_factory=dict)
    broken: Mapping[str, ManifestProblem] = field(default_factory=dict)
    touched: frozenset[ObjectKey] = frozenset()
    directory_problem: ManifestProblem | None = None

    @property
    def problems(self) -> tuple[ManifestProblem, ...]:
        found = [self.directory_problem] if self.directory_problem else []
        found += (self.broken[name] for name in sorted(self.broken))
        for key in sorted(self.duplicates):
            first, *others = self.duplicates[key]
            reason = f"{key} is in force from {first}; remove it from one of the two files"
            found += (ManifestProblem(file=name, reason=reason) for name in others)
        return tuple(found)

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(line for name in sorted(self.files) for line in self.files[name].skipped)

    @property
    def digest(self) -> str:
        """The digest of what was last read; see :func:`directory_digest`."""
        return directory_digest({name: each.sha256 for name, each in self.files.items()})


def directory_digest(sha256_by_name: Mapping[str, str]) -> str:
    """The SHA-256 (hex) over one line ``<sha256 hex of the content>  <file name>`` per file, sorted by name.

    The same as ``(cd DIR && sha256sum *.yaml *.yml *.json | sort -k2) | sha256sum`` in the
    C locale, so that anybody can ask whether an agent has read exactly this directory.
    """
    lines = (f"{sha256_by_name[name]}  {name}\n" for name in sorted(sha256_by_name))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def is_manifest_name(name: str) -> bool:
    """Whether a file of this name is read: editors' temporary files are not."""
    return name.endswith(_SUFFIXES) and not name.startswith((".", "#"))


def scan_directory(directory: Path) -> dict[str, FileSignature | None]:
    """Every manifest file with its signature; None where it can not be told.

    Raises:
        OSError: the directory is missing or unreadable.
    """
    found: dict[str, FileSignature | None] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_manifest_name(entry.name):
                try:
                    found[entry.name] = _signature(entry.stat())
                except FileNotFoundError:
                    continue  # just removed, or a link to nothing
                except OSError:
                    found[entry.name] = None
    return found


def read_directory(
    directory: Path | str,
    previous: DirectoryState | None = None,
    *,
    names: Collection[str] | None = None,
    seen: Mapping[str, FileSignature | None] | None = None,
) -> DirectoryState:
    """Read what changed since ``previous``; never raises for what users can cause.

    Args:
        names: read exactly these files, whatever their signature, and look at no other.
        seen: what ``scan_directory`` just found, if the caller has it already.
    """
    directory = Path(directory)
    before = previous or DirectoryState()
    if names is None:
        try:
            seen = scan_directory(directory) if seen is None else seen
        except OSError as error:
            reason = f"can not be read: {error.strerror}; create it; the last good state stays in force"
            problem = ManifestProblem(file=str(directory), reason=reason)
            return replace(before, directory_problem=problem, touched=frozenset())
        names = {name for name, signature in seen.items() if _changed(before.files.get(name), signature)}
        names |= before.files.keys() - seen.keys()
    after: dict[str, ManifestFile | None] = {}
    for name in sorted(names):
        known = before.files.get(name)
        if (file := _read_file(directory, name, known)) != known:
            after[name] = file
    return _advance(before, after)


def with_objects(state: DirectoryState, objects: Mapping[str, tuple[ManifestObject, ...]]) -> DirectoryState:
    """Return the state with other objects in force for some of its files, whose problems stay."""
    healed = _advance(state, {name: replace(state.files[name], objects=held) for name, held in objects.items()})
    return replace(healed, touched=state.touched | healed.touched)


def _changed(known: ManifestFile | None, signature: FileSignature | None) -> bool:
    return known is None or signature is None or known.signature != signature


def _signature(status: os.stat_result) -> FileSignature:
    return FileSignature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read_file(directory: Path, name: str, before: ManifestFile | None) -> ManifestFile | None:
    """Read one file; None if it is gone."""
    good = before or ManifestFile(signature=None, sha256="")
    signature: FileSignature | None = None
    digest = hashlib.sha256(b"").hexdigest()
    try:
        content, digest, signature = _content(directory / name)
        if before and before.sha256 == digest and before.signature:
            return replace(before, signature=signature)
        if content is None:
            reason = f"is larger than {MAX_FILE_BYTES // 2**20} MiB; split it"
            raise ManifestError(ManifestProblem(file=name, reason=reason))
        parsed = parse_manifests(_text(content, name), origin=name)
    except FileNotFoundError:
        return None
    except ManifestError as error:
        problem = error.problem
    except OSError as error:
        problem = ManifestProblem(file=name, reason=f"can not be read: {error.strerror}; make it readable or remove it")
    else:
        return ManifestFile(signature=signature, sha256=digest, objects=parsed.objects, skipped=parsed.skipped)
    return replace(good, signature=signature, sha256=digest, problem=problem)


def _content(path: Path) -> tuple[bytes | None, str, FileSignature]:
    """Return content, its SHA-256 (hex) and signature of a file; of one that is too large no content."""
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            return None, hashlib.file_digest(file, "sha256").hexdigest(), _signature(status)
        content = file.read(MAX_FILE_BYTES)
        return content, hashlib.sha256(content).hexdigest(), _signature(status)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = ManifestProblem(file=name, line=line, reason="is not UTF-8 text; save it as UTF-8")
        raise ManifestError(problem) from error


def _advance(before: DirectoryState, read: Mapping[str, ManifestFile | None]) -> DirectoryState:
    """Take the files that were read into the state."""
    if not read and before.directory_problem is None:
        return replace(before, touched=frozenset()) if before.touched else before
    files, objects = dict(before.files), dict(before.objects)
    duplicates, broken = dict(before.duplicates), dict(before.broken)
    touched: set[ObjectKey] = set()
    for name, file in read.items():
        if (gone := files.pop(name, None)) is not None:
            touched.update(each.key for each in gone.objects)
        broken.pop(name, None)
        if file is not None:
            files[name] = file
            if file.problem is not None:
                broken[name] = file.problem
    contradicted = not duplicates.keys().isdisjoint(touched)
    for key in touched:
        objects.pop(key, None)
    for file in read.values():
        for each in file.objects if file is not None else ():
            key = each.key
            contradicted = contradicted or key in objects
            touched.add(key)
            objects[key] = each
    if contradicted:
        _settle(files, touched, objects, duplicates)
    return DirectoryState(
        files=files, objects=objects, duplicates=duplicates, broken=broken, touched=frozenset(touched)
    )


def _settle(
    files: Mapping[str, ManifestFile],
    touched: set[ObjectKey],
    objects: dict[ObjectKey, ManifestObject],
    duplicates: dict[ObjectKey, tuple[str, ...]],
) -> None:
    """Where files contradict each other, and only there, search every file for who claims what."""
    claims: dict[ObjectKey, list[tuple[str, ManifestObject]]] = {}
    for name in sorted(files):
        for each in files[name].objects:
            if (key := each.key) in touched:
                claims.setdefault(key, []).append((name, each))
    for key in touched:
        claimed = claims.get(key, [])
        duplicates.pop(key, None)
        objects.pop(key, None)
        if claimed:
            objects[key] = claimed[0][1]
        if len(claimed) > 1:
            duplicates[key] = tuple(name for name, _ in claimed)
