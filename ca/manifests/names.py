"""What names an object."""

from typing import NamedTuple


class ObjectKey(NamedTuple):
    """What names an object; ``namespace`` is empty for Namespace and Node."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"
