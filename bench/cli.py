"""The command: which peers, which measures, how often; and the files that come of it."""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from bench import certificates, machine, measures, memory, peers, report, targets, wire, workers
from bench.alone import ALONE, TAKE_LONG, measure, what_is
from bench.peers import PEERS, Peer
from bench.testbed import ROOT, BenchError, Testbed, require_tools, say

_VENV: Final = ROOT / ".bench-venv"
_ONCE: Final = ("memory", "workers", *ALONE)  # after the rounds; they hardly vary, or take long
_MEASURES: Final = (*measures.MEASURES, *_ONCE)
_FULL: Final = {"rounds": 5, "seconds": 2.0, "idle_connections": 10_000, "turns": 15, "only": list(_MEASURES)}
_QUICK: Final = {
    "rounds": 1,
    "seconds": 1.0,
    "idle_connections": 1_000,
    "turns": 3,
    "only": [each for each in _MEASURES if each not in ("workers", *TAKE_LONG)],
}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark: 0, or 1 if something failed."""
    options = _parser().parse_args(arguments)
    defaults = _QUICK if options.quick else _FULL
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    began = time.monotonic()
    left_out = [name for name in _MEASURES if name not in options.only]
    if left_out:
        say(f"left out: {', '.join(left_out)}; --only {','.join(left_out)} measures them")
    try:
        require_tools()
        result = _Run(options).result()
        _write(result, options.out)
    except BenchError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    say(f"{time.monotonic() - began:.0f} s; results are in {options.out}")
    return 1 if result["failures"] else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Run:
    """One run: the rounds and what they gave."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._samples: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._handshakes: dict[str, dict[str, object]] = {}
        self._failures: list[str] = []

    def result(self) -> dict[str, Any]:
        options = self._options
        envoy = _envoy_binary() if "envoy" in options.peers else None
        if set(options.only) - set(ALONE):
            with Testbed(mesh="ringfence" in options.peers, plain=set(options.peers) != {"ringfence"}) as testbed:
                described = machine.describe(testbed, envoy_binary=envoy)
                self._with_network(testbed, envoy)
                commands = testbed.commands()
        else:
            described, commands = machine.describe(None, envoy_binary=None), []
        for name in ALONE:
            if name in options.only:
                self._alone(name)
        return {
            "machine": described,
            "options": {"rounds": options.rounds, "seconds_a_load": options.seconds, "peers": options.peers},
            "left_out": [name for name in _MEASURES if name not in options.only],
            "targets": targets.judge(self._samples),
            "measures": report.summary(self._samples),
            "handshakes": self._handshakes,
            "failures": self._failures,
            "commands": commands,
        }

    def _with_network(self, testbed: Testbed, envoy: Path | None) -> None:
        made = certificates.make(testbed.directory / "certificates")
        running = [peers.start(testbed, name, made, envoy_binary=envoy) for name in self._options.peers]
        for peer in running:
            self._warm_up(testbed, peer)
        wanted = [name for name in measures.MEASURES if name in self._options.only]
        for number in range(self._options.rounds):
            for name in wanted:
                say(f"round {number + 1} of {self._options.rounds}: {name}")
                # Another order each round: nobody always follows the same one.
                for peer in running[number % len(running) :] + running[: number % len(running)]:
                    self._measure(name, peer, partial(measures.MEASURES[name], testbed, peer, self._options.seconds))
        if "memory" in self._options.only:
            connections = min(self._options.idle_connections, testbed.max_connections - 50)
            for peer in running:
                if peer.processes():
                    say(f"memory: {connections} idle connections through {peer.name}")
                    self._measure("memory", peer, partial(memory.memory, testbed, peer, connections))

        ours = [peer for peer in running if peer.name == "ringfence"]
        if "workers" in self._options.only and ours:
            for number in range(self._options.rounds):
                say(f"workers: 1 against 2, turn {number + 1} of {self._options.rounds}")
                self._measure("workers", ours[0], partial(workers.workers, testbed, ours[0], self._options.seconds))

    def _warm_up(self, testbed: Testbed, peer: Peer) -> None:
        if peer.tls_port is None:
            measures.warm_up(testbed, peer)
            return
        with wire.Tap(testbed, peer) as tap:
            measures.warm_up(testbed, peer)
        refuses = wire.refuses_without_certificate(testbed, peer)
        self._handshakes[peer.name] = tap.handshakes() | {"refuses_without_certificate": refuses}
        if not refuses:
            self._failures.append(f"{peer.name}: accepts a client without certificate: not the same job")

    def _measure(self, name: str, peer: Peer, run: Callable[[], measures.Figures]) -> None:
        try:
            figures = run()
        except BenchError as exc:
            self._failed(name, exc)
            return
        self._take(name, peer.name, figures)

    def _take(self, measure: str, peer: str, figures: dict[str, float]) -> None:
        series = self._samples.setdefault(measure, {}).setdefault(peer, {})
        for figure, value in figures.items():
            series.setdefault(figure, []).append(value)

    def _alone(self, name: str) -> None:
        say(f"{name}: {what_is(name)}")
        try:
            self._samples[name] = measure(name, vars(self._options))
        except BenchError as exc:
            self._failed(name, exc)

    def _failed(self, name: str, why: BenchError) -> None:
        self._failures.append(f"{name}: {why}")
        say(f"FAILED: {name}: {why}")


def _write(result: dict[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = report.markdown(result)
    (directory / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (directory / "results.md").write_text(text, encoding="utf-8")
    print(text)
    python = _VENV / "bin" / "python"
    plot = [str(python), str(Path(__file__).with_name("plot.py")), str(directory / "results.json")]
    done = subprocess.run([*plot, str(directory / "results.png")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the plot failed: {done.stderr.strip()[-500:]}")


def _envoy_binary() -> Path:
    found = sorted(_VENV.glob("lib/python3.*/site-packages/envoy/_bin/envoy"))
    if not found:
        raise BenchError(f"no Envoy in {_VENV}; remove that directory and run scripts/bench again")
    return found[0]


def _list(known: Sequence[str], text: str) -> list[str]:
    wanted = [each.strip() for each in text.split(",") if each.strip()]
    unknown = [each for each in wanted if each not in known]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(known)}")
    return [each for each in known if each in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Direct, Ringfence, Envoy and HAProxy side by side (docs/performance.md).",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="bench/results")
    parser.add_argument("--quick", action="store_true", help="one round of short loads, fewer idle connections")
    parser.add_argument("--only", type=partial(_list, _MEASURES), metavar="MEASURE,...", help=", ".join(_MEASURES))
    parser.add_argument("--peers", type=partial(_list, PEERS), default=list(PEERS), metavar="PEER,...")
    parser.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds (5)")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of one load (2)")
    parser.add_argument("--turns", type=int, metavar="N", help="of 200 connects, for capture and connectlb (15)")
    parser.add_argument("--idle-connections", type=int, metavar="N", help="for memory (10000)")
    return parser
