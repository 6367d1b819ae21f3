"""The plots: what clients felt, second by second.  Runs in the benchmark's own venv, reads standard input."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl  # type: ignore[import-not-found]

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLOURS: Final = {
    "least-latency": "#1a73e8",
    "least-connections": "#4d8b31",
    "round-robin": "#e37400",
    "random": "#ac6199",
    "consistent-hash": "#9aa0a6",
}
_PANELS: Final = (("p50", "p50 [s]", False), ("p99", "p99 [s]", True), ("errors", "without an answer [%]", False))


def main(directory: Path) -> None:
    """Draw one file a scenario."""
    for name, scenario in json.load(sys.stdin).items():
        figure, axes = plt.subplots(1, len(_PANELS), figsize=(15, 3.6), constrained_layout=True)
        for axis, (series, title, is_log) in zip(axes, _PANELS, strict=True):
            _panel(axis, scenario["policies"], series, is_log=is_log)
            axis.set_title(title, fontsize=10)
        axes[0].legend(fontsize=8)
        figure.suptitle(scenario["title"], fontsize=11)
        figure.savefig(directory / f"traffic-{name}.png", dpi=80)
        plt.close(figure)


def _panel(axis: Any, policies: dict[str, Any], series: str, *, is_log: bool) -> None:
    for spine in ("top", "right"):
        axis.spines[spine].set_visible(False)
    for policy, felt in policies.items():
        values = [float("nan") if value is None else value for value in felt[series]]
        width = 2.0 if policy == "least-latency" else 1.0
        axis.plot(values, color=_COLOURS[policy], label=policy, linewidth=width)
    axis.set_xlabel("seconds", fontsize=9)
    if is_log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
        if not any(map(any, (felt[series] for felt in policies.values()))):
            axis.set_ylim(top=1)  # nothing happened


if __name__ == "__main__":
    main(Path(sys.argv[1]))
