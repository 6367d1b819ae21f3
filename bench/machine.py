"""The machine and the versions that a result belongs to."""

import os
import platform
import ssl
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.testbed import ROOT, Testbed


def describe(testbed: Testbed | None, *, envoy_binary: Path | None) -> dict[str, Any]:
    """What to know of this machine to compare its figures with another's."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "load_average_before": os.getloadavg(),
        "congestion_control_of_the_machine": _read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "congestion_control_in_the_pods": _congestion_control(testbed) if testbed else "no pods",
        "versions": {
            "ringfence": _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
            "python of ringfence": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
            "envoy": _first_line([str(envoy_binary), "--version"]) if envoy_binary else "not used",
            "haproxy": _first_line(["haproxy", "-v"]),
            "openssl of haproxy": _line_with(["haproxy", "-vv"], "Running on OpenSSL version"),
            "nginx": _first_line(["nginx", "-v"]),
            "wrk": _first_line(["wrk", "-v"]),
            "iperf3": _first_line(["iperf3", "--version"]),
            "gcc": _first_line(["gcc", "--version"]),
        },
    }


def _congestion_control(testbed: Testbed) -> str:
    found = set()
    for pod in testbed.pods.values():
        command = testbed.inside(pod, ["cat", "/proc/sys/net/ipv4/tcp_congestion_control"])
        found.add(_first_line(command))
    return ", ".join(sorted(found))


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    return next(iter(_lines(command)), "unknown")


def _line_with(command: list[str], text: str) -> str:
    return next((line.partition(":")[2].strip() for line in _lines(command) if text in line), "unknown")


def _lines(command: list[str]) -> Iterable[str]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ()
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip()
