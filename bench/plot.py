"""The plot: each measure side by side.  Runs in the benchmark's own venv: ``plot.py results.json results.png``."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl  # type: ignore[import-not-found]

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLOURS: Final = {"direct": "#9aa0a6", "ringfence": "#1a73e8", "envoy": "#ac6199", "haproxy": "#4d8b31"}
_PANELS: Final = (
    ("latency", "p50_us", "latency p50, 1 connection [µs]", "less is better"),
    ("rps64", "requests_per_s", "requests/s, 64 connections", "more is better"),
    ("rps64", "p99_us", "p99, 64 connections [µs]", "less is better"),
    ("conns", "connections_per_s", "new connections/s", "more is better"),
    ("bulk", "up_gbit_per_s", "bulk up [Gbit/s]", "more is better"),
    ("bulk", "down_gbit_per_s", "bulk down [Gbit/s]", "more is better"),
    ("bulk", "both_gbit_per_s", "bulk both ways [Gbit/s]", "more is better"),
    ("fairness", "p99_us", "ping-pong p99 under bulk [µs]", "less is better"),
    ("bulk", "cpu_s_per_gb", "CPU per GB [s]", "less is better"),
    ("rps64", "cpu_s_per_10k_requests", "CPU per 10k requests [s]", "less is better"),
    ("memory", "larger_idle_rss_mb", "idle memory of one agent [MB]", "less is better"),
    ("memory", "larger_rss_kb_per_connection", "memory per idle connection [KB]", "less is better"),
)


def main(source: Path, destination: Path) -> None:
    """Draw the medians as bars, least and greatest as whiskers."""
    result = json.loads(source.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(3, 4, figsize=(16, 9), constrained_layout=True)
    for axis, (measure, name, title, note) in zip(axes.flat, _PANELS, strict=True):
        _panel(axis, result["measures"].get(measure, {}), name)
        axis.set_title(f"{title}\n{note}", fontsize=10)
    machine = result["machine"]
    rounds = result["options"]["rounds"]
    figure.suptitle(
        f"{machine['date']} · {machine['cores']} cores of {machine['cpu']} · Linux {machine['kernel']} · "
        f"median of {rounds} interleaved round{'s' * (rounds != 1)}, whiskers: least and greatest",
        fontsize=11,
    )
    figure.savefig(destination, dpi=100)


def _panel(axis: Any, peers: dict[str, Any], name: str) -> None:
    found = {peer: figures[name] for peer, figures in peers.items() if figures.get(name, {}).get("max")}
    for spine in ("top", "right"):
        axis.spines[spine].set_visible(False)
    if not found:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    names = [peer for peer in _COLOURS if peer in found]
    medians = [found[peer]["median"] for peer in names]
    below = [found[peer]["median"] - found[peer]["min"] for peer in names]
    above = [found[peer]["max"] - found[peer]["median"] for peer in names]
    bars = axis.bar(
        names,
        medians,
        color=[_COLOURS[peer] for peer in names],
        yerr=[below, above],
        capsize=4 if max(above) > 0 else 0,
    )
    axis.bar_label(bars, labels=[_text(value) for value in medians], padding=3, fontsize=9)
    axis.margins(y=0.15)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
