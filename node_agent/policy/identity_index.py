"""Rules by who they are about: exact names by a look-up, prefixes and suffixes by one for each length that occurs."""

from collections.abc import Sequence
from typing import Final

from ca.manifests.authorization import Attribute
from node_agent.policy.compiled import CompiledRule, Peer

_ATTRIBUTES: Final = (Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SERVICE_ACCOUNT)


class IdentityIndex:
    """Ranks of rules that look at who connects."""

    def __init__(self) -> None:
        self._exact: dict[tuple[Attribute, str], list[int]] = {}
        self._prefixes: dict[tuple[Attribute, int], dict[str, list[int]]] = {}  # by their length
        self._suffixes: dict[tuple[Attribute, int], dict[str, list[int]]] = {}
        self._others: list[int] = []  # name nobody: they exclude somebody, or want anybody

    def file(self, rank: int, rule: CompiledRule) -> None:
        """File a rule so that ``candidates`` has it for each peer with whom it may match."""
        if rule.naming is None:
            self._others.append(rank)
            return
        for attribute, _, patterns in rule.naming:
            for text in patterns.exact:
                self._exact.setdefault((attribute, text), []).append(rank)
            for table, parts in ((self._prefixes, patterns.prefixes), (self._suffixes, patterns.suffixes)):
                for part in parts:
                    table.setdefault((attribute, len(part)), {}).setdefault(part, []).append(rank)

    def candidates(self, peer: Peer) -> Sequence[int]:
        """The rules that may match a peer, in order."""
        if peer.principal is None:
            return self._others
        ranks = set(self._others)
        for attribute in _ATTRIBUTES:
            ranks.update(self._exact.get((attribute, peer.get(attribute) or ""), ()))
        for (attribute, length), held in self._prefixes.items():
            ranks.update(held.get((peer.get(attribute) or "")[:length], ()))
        for (attribute, length), held in self._suffixes.items():
            ranks.update(held.get((peer.get(attribute) or "")[-length:], ()))
        return sorted(ranks)
