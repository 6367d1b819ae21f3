"""Counters and gauges, written in the Prometheus text format 0.0.4.

Nothing here stores a time series.  A family is a name, a help text and a
callable that is asked when somebody scrapes; the numbers live where they are
made.  The text is produced in chunks so that a scrape of many thousand series
never holds up the data path: the HTTP server awaits between chunks.

Why not the prometheus-client library in the agent: importing it costs 2.5 MB of
the idle agent's 45 (it loads http.server, wsgiref and gzip), a counter child
costs about 1 KB where a slotted object costs 150 bytes, and its exposition is
one uninterruptible call.  The tests parse our text with that library.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

_LOG = logging.getLogger("ringfence.metrics")

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CHUNK_BYTES: Final = 16 * 1024  # about 50 series: well under a millisecond of formatting
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")

Kind = Literal["counter", "gauge"]
Labels = tuple[str, ...]
Reading = float | Mapping[Labels, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    name: str
    kind: Kind
    help_text: str
    samples: Callable[[], Iterable[tuple[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyReading:
    """A family and its samples: label text as ``render_labels`` writes it, and value."""

    name: str
    kind: Kind
    help_text: str
    samples: Iterable[tuple[str, float]]


class Metrics:
    """The families of one agent.

    Names follow the Prometheus conventions: base unit last, ``_total`` on
    counters.  Registering a name twice is a bug and raises ``ValueError``.
    """

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        self._before: list[Callable[[], None]] = []
        self._failed_reads = 0
        self.counter(
            "ringfence_metric_read_failures_total",
            "Readings that raised an exception and are missing from a scrape.",
            lambda: self._failed_reads,
        )

    def gauge(self, name: str, help_text: str, read: Callable[[], Reading], *, labels: Labels = ()) -> None:
        """Show what ``read`` returns at each scrape: a number, or numbers by label values, ordered as ``labels``."""
        self._add(name, "gauge", help_text, lambda: _labelled(read(), labels))

    def counter(self, name: str, help_text: str, read: Callable[[], Reading], *, labels: Labels = ()) -> None:
        """Like :meth:`gauge`, for a number that only grows; ``name`` ends in ``_total``."""
        if not name.endswith("_total"):
            raise ValueError(f"counter {name!r} must end in _total")
        self._add(name, "counter", help_text, lambda: _labelled(read(), labels))

    def counter_of_rendered(
        self, name: str, help_text: str, samples: Callable[[], Iterable[tuple[str, float]]]
    ) -> None:
        """Like :meth:`counter`, for a caller that keeps its label sets already rendered by :func:`render_labels`."""
        self._add(name, "counter", help_text, samples)

    def before_scrape(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` at the start of each scrape, to bring lazily kept numbers up to date."""
        self._before.append(hook)

    def render(self) -> Iterator[bytes]:
        """The whole text, in chunks of about 16 KiB.  A reading that fails is logged, counted and left out."""
        return render_families(self.read())

    def read(self) -> Iterator[FamilyReading]:
        """The families one after the other, each read when its samples are iterated."""
        for hook in self._before:
            hook()
        for family in self._families.values():
            yield FamilyReading(
                name=family.name, kind=family.kind, help_text=family.help_text, samples=self._guarded(family)
            )

    def _guarded(self, family: _Family) -> Iterator[tuple[str, float]]:
        try:
            yield from family.samples()
        except Exception:
            self._failed_reads += 1
            _LOG.exception("metric %s could not be read", family.name)

    def _add(self, name: str, kind: Kind, help_text: str, samples: Callable[[], Iterable[tuple[str, float]]]) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a metric name")
        if name in self._families:
            raise ValueError(f"metric {name!r} is registered twice")
        self._families[name] = _Family(name=name, kind=kind, help_text=help_text, samples=samples)


def render_families(families: Iterable[FamilyReading]) -> Iterator[bytes]:
    """The text of these families, in chunks of about 16 KiB."""
    lines: list[str] = []
    size = 0
    for family in families:
        lines.append(f"# HELP {family.name} {_escape_help(family.help_text)}\n# TYPE {family.name} {family.kind}\n")
        for labels, value in family.samples:
            line = f"{family.name}{labels} {_number(value)}\n"
            lines.append(line)
            size += len(line)
            if size >= _CHUNK_BYTES:
                yield "".join(lines).encode()
                lines.clear()
                size = 0
    yield "".join(lines).encode()


def render_labels(names: Labels, values: Labels) -> str:
    """``{name="value",...}`` with the escapes of the text format; empty text without labels."""
    if not names:
        return ""
    return "{" + ",".join(f'{n}="{_escape_value(v)}"' for n, v in zip(names, values, strict=True)) + "}"


def _labelled(reading: Reading, names: Labels) -> Iterator[tuple[str, float]]:
    if isinstance(reading, Mapping):
        for values, value in list(reading.items()):
            yield render_labels(names, values), value
    else:
        yield "", reading


def _number(value: float) -> str:
    if isinstance(value, int):  # bool included: 1 and 0
        return str(int(value))
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _escape_value(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
