"""Rows that a draw is made from with one look: Walker's alias method, as the kernel draws (bpf/balance.h).

Sans-I/O.  Each of n rows is drawn as often as any other.  A row whose own endpoint is to have less than 1/n of the
connections gives what is left to one that is to have more; so every share is exact to about 2^-32, with as many rows
as endpoints.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

_DRAWS: Final = 1 << 32


class AliasRow(NamedTuple):
    """``own`` of 2^32 draws that come to this row it keeps; the others are ``other``'s, an index of the shares."""

    own: int
    other: int


def alias_rows(shares: Sequence[float]) -> list[AliasRow]:
    """One row for each of ``shares``, in their order; they are positive, and need not add up to 1."""
    count = len(shares)
    total = sum(shares)
    left = [each / total * count for each in shares]  # in rows
    rows = [AliasRow(_DRAWS, index) for index in range(count)]
    small = [index for index, each in enumerate(left) if each < 1.0]
    large = [index for index, each in enumerate(left) if each >= 1.0]
    while small and large:
        poor, rich = small.pop(), large[-1]
        rows[poor] = AliasRow(max(1, round(left[poor] * _DRAWS)), rich)
        left[rich] -= 1.0 - left[poor]
        if left[rich] < 1.0:
            small.append(large.pop())
    return rows  # whoever is left over has a whole row, but for rounding
