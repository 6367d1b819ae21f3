"""Ask a DNS server one question: the only door to dnspython.

Imported when the first name is declared outside of the mesh, not before: it is
3 MB of memory.  The answers are data: what is no address that can be connected
to (loopback, link-local, multicast) is dropped, as it would be in a manifest.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver

from ca.manifests.fields import FieldError, canonical_ip
from node_agent.config import HostPort
from node_agent.registry.dns_names import Question

_LIFETIME_S: Final = 5.0  # of a question, over all servers
_RESOLV_CONF: Final = "/etc/resolv.conf"


class LookupFailedError(Exception):
    """Nobody answered, or the answer is that there is no such name; the text says which."""


class Answer(NamedTuple):
    """``ttl_s`` is the least of all records that led to the addresses."""

    addresses: tuple[str, ...]
    ttl_s: float


async def lookup(question: Question, servers: Sequence[HostPort]) -> Answer:
    """Ask ``servers``, or those of resolv.conf as it is now if there are none.

    Raises:
        LookupFailedError: there is no usable answer.
    """
    try:
        resolver = _resolver(servers)
        answer = await resolver.resolve(
            f"{question.name}.",
            question.record.value,
            raise_on_no_answer=False,
            search=False,
            backend=dns.asyncbackend.get_backend("trio"),
        )
    except dns.resolver.NXDOMAIN:
        raise LookupFailedError("DNS says that it does not exist") from None
    except dns.resolver.NoResolverConfiguration:
        raise LookupFailedError(f"{_RESOLV_CONF} names no server; write [dns] servers into agent.toml") from None
    except dns.exception.Timeout:
        raise LookupFailedError(f"no answer from {_told(servers)} within {_LIFETIME_S:g} s") from None
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise LookupFailedError(f"no usable answer from {_told(servers)} ({type(error).__name__})") from error
    usable = [ip for record in answer.rrset or () if (ip := _usable(record.to_text()))]
    return Answer(tuple(usable), float(answer.chaining_result.minimum_ttl))


def _resolver(servers: Sequence[HostPort]) -> dns.asyncresolver.Resolver:
    if servers:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in servers]
    else:
        resolver = dns.asyncresolver.Resolver(_RESOLV_CONF)
    resolver.lifetime = _LIFETIME_S
    return resolver


def _told(servers: Sequence[HostPort]) -> str:
    return ", ".join(map(str, servers)) or f"the servers in {_RESOLV_CONF}"


def _usable(address: str) -> str:
    try:
        return canonical_ip(address, ())
    except FieldError:
        return ""
