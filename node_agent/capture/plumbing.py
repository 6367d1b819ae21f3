"""Rules, routes and sysctls inside pods, done by a short-lived child process.

A process of its own, because pyroute2 and libnftables cost 12 MB and belong to
none of the agent's running connections; and because a thread that enters
namespaces for milliseconds must not be one that trio uses again.  It is the one
door to pyroute2 and nftables in the agent.

The parent (``Plumber``) passes the namespaces as inherited descriptors and asks
for many pods at once; the child answers one line of JSON a pod.
"""

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, Final

import trio

from node_agent.capture import rules
from node_agent.capture.netns import setns_network

_TIMEOUT_S: Final = 20.0
_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PlumbingJob:
    """One namespace to redirect (``install``) or to set free; ``by_bpf``: BPF redirects, the way back is enough.

    ``rules`` are other ones than a pod's.
    """

    fd: int
    install: bool
    by_bpf: bool = False
    rules: str | None = None


class PlumbingError(Exception):
    """A pod could not be plumbed; the text says which step and why."""


async def plumb(jobs: Sequence[PlumbingJob]) -> list[PlumbingError | None]:
    """Do all ``jobs``; returns one error or None for each, in order."""
    request = json.dumps([asdict(job) for job in jobs])
    command = [sys.executable, "-I", "-m", "node_agent.capture.plumbing"]
    try:
        with trio.fail_after(_TIMEOUT_S):
            done = await trio.run_process(
                command,
                stdin=request.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                pass_fds=[job.fd for job in jobs],
            )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
    except trio.TooSlowError:
        return [PlumbingError(f"no answer within {_TIMEOUT_S:g} s")] * len(jobs)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [PlumbingError(f"the plumbing process failed: {error}")] * len(jobs)
    results: list[PlumbingError | None] = [PlumbingError(answer) if answer else None for answer in answers]
    if len(results) < len(jobs):
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        missing = PlumbingError(f"the plumbing process ended with {done.returncode}: {' '.join(tail)}")
        results += [missing] * (len(jobs) - len(results))
    return results


def _main() -> None:
    """The child: read jobs, do several at once, answer one line each, in order.

    A job is 24 ms, more than half of which the kernel waits for all its cores to have seen the new rules; each
    thread is in the namespace of its job.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for answer in threads.map(_answer, json.load(sys.stdin)):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _answer(job: dict[str, Any]) -> str:
    """Do one job; returns what went wrong, or nothing."""
    try:
        setns_network(job["fd"])
        if job["rules"] is None and job["install"] and not job["by_bpf"]:
            _install_rules()
        else:
            _run_nft(job["rules"] or rules.REMOVE)
        _return_route(install=job["install"])
        if job["install"]:
            _loosen_loopback_rp_filter()
            if job["rules"] is None:  # on a node with rules of its own the mark that is inherited would be the agent's
                _let_answers_inherit_marks()
    except (OSError, PlumbingError) as error:
        return str(error) or type(error).__name__
    return ""


def _install_rules() -> None:
    """Put a pod's rules in place of those that it has, as this kernel can."""
    if _nft(rules.install())[0]:
        _run_nft(rules.install(knows_sockets=False))  # what else is wrong, this tells as well


def _nft(text: str) -> tuple[int, str]:
    """Returns the status and, if that is not 0, what was wrong."""
    from nftables import Nftables  # noqa: PLC0415  # not in the parent

    status, _, error = Nftables().cmd(text)
    return status, str(error)


def _run_nft(text: str) -> None:
    status, error = _nft(text)
    if status:
        raise PlumbingError(f"nftables refused the rules: {' '.join(error.split())}")


def _return_route(*, install: bool) -> None:
    """Route packets that carry the return mark to the loopback (see rules.py)."""
    from pyroute2 import IPRoute  # noqa: PLC0415
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    with IPRoute() as ipr:
        loopback = ipr.link_lookup(ifname="lo")[0]
        ipr.link("set", index=loopback, state="up")
        for family, everything in ((AF_INET, "0.0.0.0/0"), (AF_INET6, "::/0")):
            rule: dict[str, Any] = {
                "family": family,
                "fwmark": rules.RETURN_MARK,
                "fwmask": rules.MARK_MASK,
                "table": rules.RETURN_ROUTE_TABLE,
                "priority": rules.RETURN_RULE_PRIORITY,
                "action": "FR_ACT_TO_TBL",
            }
            route: dict[str, Any] = {
                "family": family,
                "dst": everything,
                "type": "local",
                "table": rules.RETURN_ROUTE_TABLE,
                "oif": loopback,
            }
            if family == AF_INET:
                route["scope"] = "host"
            try:
                ipr.rule("add" if install else "del", **rule)
            except NetlinkError as error:
                _check(error, family)
            try:
                ipr.route("replace" if install else "del", **route)
            except NetlinkError as error:
                _check(error, family)


def _check(error: Any, family: int) -> None:
    """Pass over "is there already", "was not there", and a pod without IPv6; raise the rest."""
    if error.code in (errno.EEXIST, errno.ENOENT, errno.ESRCH):
        return
    if family == AF_INET6 and error.code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES):
        return
    raise PlumbingError(f"routing inside the pod: {error}") from error


def _loosen_loopback_rp_filter() -> None:
    """Let packets with a client's address in on lo, where strict reverse-path filtering would drop them.

    The kernel takes the larger of ``all`` and ``lo``, and 2 (loose) is larger
    than 1 (strict): only the loopback is loosened (ip-sysctl, rp_filter).
    """
    settings = Path("/proc/sys/net/ipv4/conf")
    values = [int((settings / name / "rp_filter").read_text()) for name in ("all", "lo")]
    if max(values) == 1:
        (settings / "lo" / "rp_filter").write_text("2")


def _let_answers_inherit_marks() -> None:
    """What the application answers carries the mark of what it was sent, also its RST: the return route knows it
    by that, and nothing has to remember connections (ip-sysctl, tcp_fwmark_accept and fwmark_reflect)."""
    for name in ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"):
        setting = Path("/proc/sys/net") / name
        if setting.exists():  # a kernel without IPv6
            setting.write_text("1")


if __name__ == "__main__":
    _main()
