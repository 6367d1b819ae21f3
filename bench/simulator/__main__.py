"""Every scenario with every policy: a table, figures as one line of JSON, plots.

``scripts/bench --only simulator`` runs it; ``python -m bench.simulator --out docs`` makes the plots of
docs/traffic.md anew.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from bench.simulator.feelings import Feelings
from bench.simulator.scenarios import SCENARIOS, Size
from bench.simulator.world import World
from bench.testbed import ROOT, BenchError
from ca.manifests.traffic import Balancing, LoadBalancing, Traffic

_SEED: Final = 1
_QUANTILES: Final = {"p50": 0.5, "p99": 0.99}


def main() -> None:
    """Run, and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulator")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", metavar="DIR")
    parser.add_argument("--seed", type=int, default=_SEED)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    plotted: dict[str, Any] = {}
    _row("scenario", "policy", "connections", "p50 ms", "p99 ms", "no answer", "cut")
    for name, scenario in SCENARIOS.items():
        plotted[name] = {"title": scenario.title, "policies": {}}
        for policy in LoadBalancing:
            traffic = Traffic(balancing=Balancing(policy=policy))
            felt = World(scenario, traffic, size=Size(), seed=options.seed).run()
            _row(
                name, policy, len(felt.all), *(_ms(felt.quantile(share)) for share in _QUANTILES.values()), felt.errors
            )
            plotted[name]["policies"][policy] = _over_time(felt)
            figures |= _figures(f"{name}_{policy}".replace("-", "_"), felt)
    _plot(plotted, options.out)
    print(json.dumps(figures))


def _figures(prefix: str, felt: Feelings) -> dict[str, float]:
    """What is infinite is left out: the share without an answer tells why."""
    found = {f"{prefix}_{name}_ms": felt.quantile(share) * 1000 for name, share in _QUANTILES.items()}
    found[f"{prefix}_no_answer_percent"] = 100.0 * felt.errors / len(felt.all)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _over_time(felt: Feelings) -> dict[str, Any]:
    quantiles = {name: felt.over_time(share) for name, share in _QUANTILES.items()}
    return {**quantiles, "errors": felt.errors_over_time()}


def _plot(plotted: dict[str, Any], directory: Path) -> None:
    python = ROOT / ".bench-venv" / "bin" / "python"
    script = Path(__file__).with_name("plot.py")
    done = subprocess.run(
        [python, script, directory], input=json.dumps(plotted), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"the plot failed: {done.stderr.strip()[-500:]}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}" if math.isfinite(seconds) else "none"


def _row(*cells: object) -> None:
    print("".join(f"{cell!s:>19}" for cell in cells), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
