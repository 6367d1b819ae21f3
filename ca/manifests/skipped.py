"""What is well-formed but of no use to Ringfence."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skipped:
    """This object is not used; ``reason`` says why."""

    reason: str
