"""Everything that is wrong with one object, and not the first thing only.

The parsers stop at the first error: for an agent the file is refused with it.
Who checks a file wants to hear of all, so what is wrong is taken out of a copy
and the rest is read again.  An error at, above or below a place that was taken
out is a consequence of that, and not told.
"""

import copy
from typing import Any, Final

from ca.manifests import parse_object
from ca.manifests.documents import Path
from ca.manifests.fields import FieldError

_MOST: Final = 50
_PLACEHOLDER: Final = "placeholder"  # for a text that is missing


def every_error(data: Any, path: Path) -> list[FieldError]:
    """What is wrong with an object at ``path`` of its document; empty if nothing is."""
    object_copy = _Copy(data)
    found: list[FieldError] = []
    while len(found) < _MOST:
        try:
            parse_object(object_copy.data, path=path)
        except FieldError as error:
            where = object_copy.original(error.path[len(path) :])
            if not object_copy.was_touched(where):
                found.append(FieldError((*path, *where), error.reason))
            if not object_copy.mend(where):
                break
        else:
            break
    return found


class _Copy:
    """A copy of an object; places in it are named as in the original, whatever was taken out of lists."""

    def __init__(self, data: Any) -> None:
        self.data = copy.deepcopy(data)
        self._left: dict[Path, list[int]] = {}  # of a list that something was taken out of: the indices of the rest
        self._touched: list[Path] = []

    def original(self, where: Path) -> Path:
        """The original name of a place of the copy."""
        found: Path = ()
        for part in where:
            found = (*found, self._left[found][part] if isinstance(part, int) and found in self._left else part)
        return found

    def was_touched(self, where: Path) -> bool:
        """Whether a place, or one above or below it, was mended."""
        return any(each[: len(where)] == where or where[: len(each)] == each for each in self._touched)

    def mend(self, where: Path) -> bool:
        """Put something where nothing is, or take out what is there, or what it is in; False if nothing is left."""
        while where:
            holder, key = self._at(where[:-1]), where[-1]
            was_mended = where in self._touched
            self._touched.append(where)
            if isinstance(holder, dict) and key in holder:
                del holder[key]
                return True
            if isinstance(holder, dict) and not was_mended:
                holder[str(key)] = _PLACEHOLDER
                return True
            if isinstance(holder, list) and isinstance(key, int):
                left = self._left.setdefault(where[:-1], list(range(len(holder))))
                if key in left:
                    holder.pop(left.index(key))
                    left.remove(key)
                    return True
            where = where[:-1]
        return False

    def _at(self, where: Path) -> Any:
        found = self.data
        name: Path = ()
        for part in where:
            left = self._left.get(name)
            index = left.index(part) if left is not None and part in left else part
            try:
                found = found[index]
            except (KeyError, IndexError, TypeError):
                return None
            name = (*name, part)
        return found
