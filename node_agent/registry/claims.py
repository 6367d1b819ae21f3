"""Who holds an address that several objects claim.

Nearly every address has one claimant, so only contested ones cost more than a
dictionary entry.  The holder must be a function of the claimants alone, never
of the order of arrival, so that every agent and the CA agree.
"""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

C = TypeVar("C")


class Claims(Generic[C]):
    """Claimants by address, and who holds it.

    ``holders`` may be read directly, for the hot path.  ``choose`` picks the
    holder of a contested address.
    """

    def __init__(self, choose: Callable[[list[C]], C]) -> None:
        self._choose = choose
        self.holders: dict[str, C] = {}
        self._contested: dict[str, list[C]] = {}

    @property
    def contested(self) -> Mapping[str, list[C]]:
        """Every address with more than one claimant, the holder among them."""
        return self._contested

    def add(self, address: str, claimant: C) -> None:
        holder = self.holders.get(address)
        if holder is None:
            self.holders[address] = claimant
            return
        claimants = self._contested.setdefault(address, [holder])
        claimants.append(claimant)
        self.holders[address] = self._choose(claimants)

    def remove(self, address: str, claimant: C) -> None:
        """Take back a claim, if there is one; ``claimant`` is the very object that was added."""
        claimants = self._contested.get(address)
        if claimants is None:
            if self.holders.get(address) is claimant:
                del self.holders[address]
            return
        claimants[:] = [each for each in claimants if each is not claimant]
        self.holders[address] = self._choose(claimants)
        if len(claimants) == 1:
            del self._contested[address]
