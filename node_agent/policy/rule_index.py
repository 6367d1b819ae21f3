"""Rules of one action, found by who connects: what most of them do not even look at costs nothing.

Each rule is filed once, by the first of these that it has:

    who it names       under each identity, account, namespace, prefix or suffix that would fit
    who it excludes    in a list that is looked through for each new peer
    neither            under each of its ports; with the rest, if it has none

``reduced`` is what is left of those for one peer and port, which its caller
keeps: afterwards only addresses are compared.  What is left of rules that do not
look at who connects is shared by all peers: there may be thousands of those.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from node_agent.policy.compiled import ALWAYS, CompiledRule, Peer, Remainder, holds
from node_agent.policy.decision import PolicyRule
from node_agent.policy.identity_index import IdentityIndex
from node_agent.policy.prefixes import Address, Network, NetworkTable

_MAX_SCANNED: Final = 16  # below, comparing each costs no more than finding the ones to compare
_MAX_PORTS: Final = 1024  # that are remembered; a workload serves a few


class Entry(NamedTuple):
    """What is left of a rule; ``rank`` is its place among all."""

    rank: int
    ref: PolicyRule
    remainder: Remainder


class Reduced:
    """The rules of an action that may match one peer and port, in order.

    ``shared`` are others of the same action, reduced for more peers or more ports than these.
    """

    __slots__ = ("_by_source", "_entries", "_scanned", "_shared", "is_settled")

    def __init__(self, entries: Sequence[Entry], shared: "Reduced | None" = None) -> None:
        self._entries = tuple(entries)
        self._shared = shared
        self.is_settled: bool = all(each.remainder == ALWAYS for each in entries) and (
            shared is None or shared.is_settled
        )
        self._by_source: NetworkTable[Entry] | None = None
        self._scanned = self._entries
        if len(self._entries) > _MAX_SCANNED:
            filed: list[tuple[Network, Entry]] = []
            self._scanned = tuple(each for each in self._entries if not _file(each, filed))
            self._by_source = NetworkTable(filed)

    def first(self, source: Address, destination: Address) -> tuple[PolicyRule, ...]:
        """The first rule that matches, if one does."""
        found = self.first_entry(source, destination)
        return () if found is None else (found.ref,)

    def first_entry(self, source: Address, destination: Address) -> Entry | None:
        """The same, with its place."""
        other = self._shared.first_entry(source, destination) if self._shared is not None else None
        for each in self._candidates(source):
            if other is not None and other.rank < each.rank:
                break
            if holds(each.remainder, source, destination):
                return each
        return other

    def every(self, source: Address, destination: Address) -> tuple[PolicyRule, ...]:
        """All rules that match, in order."""
        return tuple(each.ref for each in sorted(self.entries(source, destination)))

    def entries(self, source: Address, destination: Address) -> list[Entry]:
        """The same, with their places, in no order."""
        found = [each for each in self._candidates(source) if holds(each.remainder, source, destination)]
        return found if self._shared is None else [*found, *self._shared.entries(source, destination)]

    def _candidates(self, source: Address) -> Sequence[Entry]:
        if self._by_source is None:
            return self._entries
        found = self._by_source.at(source)
        if not found:
            return self._scanned
        if len(found) == 1 and not self._scanned:
            return found
        by_rank = {each.rank: each for each in (*found, *self._scanned)}  # one may be there under several networks
        return [by_rank[rank] for rank in sorted(by_rank)]


NOTHING: Final = Reduced(())


def _file(entry: Entry, filed: list[tuple[Network, Entry]]) -> bool:
    """File a rule under the source networks without which it can not match, if it has such."""
    for alternatives in entry.remainder:
        named = [
            next((test.networks.networks for test in tests if test.of_source and not test.negated), None)
            for tests in alternatives
        ]
        if all(each is not None for each in named):
            filed += ((network, entry) for networks in named for network in networks or ())
            return True
    return False


class RuleIndex:
    """Rules of one action, in order.  With ``every``, all that match are wanted, not only the first."""

    def __init__(self, rules: Iterable[CompiledRule], *, every: bool = False) -> None:
        self.rules = tuple(rules)
        self._every = every
        self._names = IdentityIndex()
        self._by_port: dict[int, list[int]] = {}
        self._not_ports: list[int] = []  # excludes ports
        self._any_port: list[int] = []
        self._always: Reduced | None = None  # what is left of ``_any_port``
        self._of_port: dict[int, Reduced] = {}
        for rank, rule in enumerate(self.rules):
            self._file(rank, rule)

    def _file(self, rank: int, rule: CompiledRule) -> None:
        if rule.asks_identity:
            self._names.file(rank, rule)
        elif rule.ports is not None:
            for port in rule.ports:
                self._by_port.setdefault(port, []).append(rank)
        elif rule.asks_port:
            self._not_ports.append(rank)
        else:
            self._any_port.append(rank)

    def reduced(self, peer: Peer, port: int) -> Reduced:
        """What is left of the rules for one peer and port."""
        shared = self._of_port.get(port)
        if shared is None:
            shared = self._reduced_for_all(port)
        return self._reduce(self._names.candidates(peer), peer, port, shared)

    def _reduced_for_all(self, port: int) -> Reduced:
        """What is left of the rules that do not look at who connects."""
        if self._always is None:
            self._always = self._reduce(self._any_port, _NOBODY, 0, NOTHING)
        ranks = sorted({*self._not_ports, *self._by_port.get(port, ())})
        if not ranks:
            return self._always
        if len(self._of_port) >= _MAX_PORTS:
            self._of_port.clear()
        found = self._of_port[port] = self._reduce(ranks, _NOBODY, port, self._always)
        return found

    def _reduce(self, ranks: Iterable[int], peer: Peer, port: int, shared: Reduced) -> Reduced:
        entries = []
        for rank in ranks:
            rule = self.rules[rank]
            remainder = rule.reduce(peer, port)
            if remainder is not None:
                entries.append(Entry(rank, rule.ref, remainder))
                if remainder == ALWAYS and not self._every:
                    break  # whatever follows decides nothing
        return Reduced(entries, shared) if entries else shared


_NOBODY: Final = Peer.of(None)
