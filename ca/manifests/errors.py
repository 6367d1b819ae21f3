"""What is wrong with a manifest, where, and what to do: always one line."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestProblem:
    """One thing that keeps a file, or a part of it, out of force.

    ``document`` counts from 1 in the order of the ``---`` marks, ``line`` from
    1; 0 where the problem is the whole file's.  ``path`` is empty where it is
    the whole document's.  ``reason`` says what is wrong and what to do.
    """

    file: str
    document: int = 0
    line: int = 0
    path: str = ""
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        parts = [f"document {self.document}"] if self.document else []
        if self.path:
            parts.append(self.path)
        return ": ".join([where, *([", ".join(parts)] if parts else []), self.reason])


class ManifestError(ValueError):
    """A file is rejected whole; ``problem`` says where and why."""

    def __init__(self, problem: ManifestProblem) -> None:
        super().__init__(str(problem))
        self.problem = problem
