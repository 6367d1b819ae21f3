"""What the values on the command line must look like; argparse reports what these raise."""

import argparse


def label(text: str) -> tuple[str, str]:
    """``key=value``."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as key=value")
    return key, value


def node_number(text: str) -> int:
    """``1``; ``node-1``, ``agent-1`` and ``ca`` too."""
    number = text.removeprefix("node-").removeprefix("agent-")
    if text == "ca":
        return 0
    if not number.isascii() or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a node")
    return int(number)


def trust_domain_of(text: str) -> tuple[int, str]:
    """``K=NAME``."""
    node, equals, name = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as K=NAME, for example 2=other.example")
    return node_number(node), name


def port(text: str) -> int:
    """A TCP port."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is 1 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """A time of up to a day, in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: must be more than 0 and less than 86400 (seconds)")
    return value
