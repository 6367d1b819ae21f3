"""Maglev: a table in which each endpoint has its share, and keeps nearly all of it when another one leaves.

From "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016,
section 3.4): every endpoint has its own permutation of the table's places, and
in turns each takes the next place of its permutation that is still free.
Weights as in Envoy: an endpoint takes a turn whenever its weight's share of the
turns is due.  The table has at least a hundred places for each endpoint, so
shares differ by about 1 % at most.

Hashes are BLAKE2b of names: the same on every node and after every restart.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

_PLACES_EACH: Final = 100
_PRIMES: Final = (251, 1021, 4093, 16381, 65537)  # building the largest takes about 0.1 s, for 655 endpoints or more


class Maglev:
    """A finished table of indexes into the names it was made from."""

    __slots__ = ("_table",)

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        """``names`` are unique; at least one weight is more than 0."""
        self._table = _fill(names, weights)

    @property
    def size(self) -> int:
        return len(self._table)

    def index(self, key: str) -> int:
        """Whose place ``key`` falls into."""
        return self._table[_hash(key, b"key") % len(self._table)]

    def place(self, number: int) -> int:
        """Whose the place ``number`` is, from 0 to ``size``."""
        return self._table[number]

    def from_key(self, key: str) -> Iterator[int]:
        """Whose place ``key`` falls into, and whose the places after that are, once around.

        Who is not to be had is passed over: only its keys move, and they move to all the others.
        """
        start = _hash(key, b"key") % len(self._table)
        for number in range(start, start + len(self._table)):
            yield self._table[number % len(self._table)]


def _fill(names: Sequence[str], weights: Sequence[float]) -> list[int]:
    wanted = sum(weight > 0 for weight in weights) * _PLACES_EACH
    size = next((prime for prime in _PRIMES if prime >= wanted), _PRIMES[-1])
    # By name, so that the order in which endpoints are listed does not matter.
    order = sorted((index for index, weight in enumerate(weights) if weight > 0), key=names.__getitem__)
    offsets = [_hash(names[index], b"offset") % size for index in order]
    skips = [_hash(names[index], b"skip") % (size - 1) + 1 for index in order]
    heaviest = max(weights)
    shares = [weights[index] / heaviest for index in order]
    credits_ = [0.0] * len(order)
    table = [-1] * size
    taken = 0
    while True:
        for turn, index in enumerate(order):
            credits_[turn] += shares[turn]
            if credits_[turn] < 1.0:
                continue
            credits_[turn] -= 1.0
            place = offsets[turn]
            skip = skips[turn]
            while table[place] >= 0:
                place = (place + skip) % size
            table[place] = index
            offsets[turn] = (place + skip) % size
            taken += 1
            if taken == size:
                return table


def _hash(text: str, kind: bytes) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8, person=kind).digest(), "big")
