"""Changes ASN.1 in DER as a tree, so that the lengths still fit and the change gets past the parser.

A node is a tag and its content: bytes, or nodes where the tag says that it is
constructed (X.690 8.1).  Lengths are written anew.
"""

import random
from dataclasses import dataclass

import atheris

_CONSTRUCTED = 0x20
_TAGS = (0x02, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x13, 0x16, 0x17, 0x30, 0x31, 0x80, 0x82, 0x86, 0xA0)


@dataclass(slots=True)
class Node:
    tag: int
    content: "bytes | list[Node]"

    def inside(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else b"".join(each.encode() for each in self.content)

    def encode(self) -> bytes:
        content = self.inside()
        length = len(content)
        if length < 0x80:
            head = bytes([length])
        else:
            octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
            head = bytes([0x80 | len(octets)]) + octets
        return bytes([self.tag]) + head + content


def parse(data: bytes) -> list[Node]:
    """Read all of ``data``.  Raises ValueError: it is not DER, or uses tags of several bytes."""
    nodes = []
    while data:
        if len(data) < 2 or data[0] & 0x1F == 0x1F:
            raise ValueError("no tag")
        tag, length, start = data[0], data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            raise ValueError("too short")
        content = data[start : start + length]
        nodes.append(Node(tag, parse(content) if tag & _CONSTRUCTED else content))
        data = data[start + length :]
    return nodes


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Custom mutator of libFuzzer: one node is changed, dropped, repeated or moved; sometimes just bytes are."""
    rng = random.Random(seed)
    try:
        roots = parse(data) if rng.random() < 0.8 else []
    except (ValueError, RecursionError):
        roots = []
    if not roots:
        return atheris.Mutate(data, max_size)  # type: ignore[no-any-return]
    lists = _lists(roots)
    siblings = rng.choice([each for each in lists if each])
    position = rng.randrange(len(siblings))
    node = siblings[position]
    match rng.randrange(5):
        case 0:
            del siblings[position]
        case 1:
            siblings.insert(rng.randrange(len(siblings) + 1), Node(node.tag, node.content))
        case 2:
            node.tag = rng.choice(_TAGS)
        case 3:
            other = rng.choice(rng.choice([each for each in lists if each]))
            siblings[position] = Node(other.tag, other.encode() if rng.random() < 0.2 else other.content)
        case _:
            content = (
                node.content if isinstance(node.content, bytes) else b"".join(each.encode() for each in node.content)
            )
            node.content = atheris.Mutate(content, len(content) + 8) if content else b"\x00"
    try:
        changed = b"".join(each.encode() for each in roots)
    except RecursionError:  # a node was put into itself
        changed = max_size * b"x" + b"x"
    return changed if len(changed) <= max_size else atheris.Mutate(data, max_size)


def _lists(nodes: list[Node]) -> list[list[Node]]:
    found = [nodes]
    for node in nodes:
        if isinstance(node.content, list):
            found += _lists(node.content)
    return found
