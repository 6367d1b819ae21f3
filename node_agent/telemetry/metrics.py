"""The families of metrics: counters, gauges and histograms, read when somebody scrapes.

Nothing here stores a time series, and nothing here writes text: a family is a
name, a help text and a callable, and the numbers live where they are made.
``exposition`` writes them, by prometheus-client.  Only a histogram keeps its
numbers itself, preallocated: what is observed costs a bisection into a tuple
and two additions, 0.25 us.

Label values are closed sets.  Where they come from users (names of workloads
and services, in ``traffic``), their number is bounded by ``[metrics]
max_label_sets``.

With worker processes a family is read in each of them and put together in the
parent (workers/figures.py): added up, or the greatest of them (``merge="max"``)
where a sum says nothing.
"""

import itertools
import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

_LOG = logging.getLogger("ringfence.metrics")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
BUCKET: Final = "_bucket"
LE: Final = "le"  # Prometheus' label of a bucket: observations less than or equal to it

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max"]
Labels = tuple[str, ...]
Reading = float | Mapping[Labels, float] | Iterator[tuple[Labels, float]]
Steps = Callable[[], Iterator[None]]

QUICK_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets of what takes a round trip or a few: connects, handshakes."""

LIFETIME_S: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Buckets of how long connections live: from a request to a day."""

LAG_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Buckets of how late a loop comes round; the kernel's own timers are late by up to a millisecond."""


class Sample(NamedTuple):
    """One number; of a histogram ``suffix`` says which, and the values of a bucket end with its bound."""

    values: Labels
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyReading:
    """A family and its samples, which are read while they are iterated."""

    name: str
    kind: Kind
    help_text: str
    labels: Labels
    merge: Merge
    samples: Iterable[Sample]

    def names_of(self, sample: Sample) -> Labels:
        """The names of a sample's label values."""
        return (*self.labels, LE) if sample.suffix == BUCKET else self.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    name: str
    kind: Kind
    help_text: str
    labels: Labels
    merge: Merge
    samples: Callable[[], Iterable[Sample]]


class Histogram:
    """How many observations fell under each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one, in the unit of the family's name."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, ascending: Sequence[float]) -> None:
        """Count each of many: a bisection for each bound instead of one for each value."""
        counted = 0
        for number, bound in enumerate(self._bounds):
            upto = bisect_right(ascending, bound)
            self._counts[number] += upto - counted
            counted = upto
        self._counts[-1] += len(ascending) - counted
        self._sum += sum(ascending)

    def samples(self, values: Labels) -> Iterator[Sample]:
        """As Prometheus wants them: how many up to each bound, the last one is all."""
        upper = [*map(repr, self._bounds), "+Inf"]
        counts = list(itertools.accumulate(self._counts))
        for bound, count in zip(upper, counts, strict=True):
            yield Sample((*values, bound), count, BUCKET)
        yield Sample(values, self._sum, "_sum")
        yield Sample(values, counts[-1], "_count")


class HistogramFamily:
    """One histogram for each combination of label values; all are there from the start."""

    def __init__(self, bounds: tuple[float, ...], labels: Mapping[str, Labels]) -> None:
        self._by_values = {values: Histogram(bounds) for values in itertools.product(*labels.values())}

    def of(self, *values: str) -> Histogram:
        """The histogram to observe into, to be kept by those who do so often; ``KeyError`` if the set has no such."""
        return self._by_values[values]

    def samples(self) -> Iterator[Sample]:
        for values, histogram in self._by_values.items():
            yield from histogram.samples(values)


class Metrics:
    """The families of one process.

    Names follow the Prometheus conventions: base unit last, ``_total`` on
    counters.  Registering a name twice is a bug and raises ``ValueError``.
    """

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        self._before: list[Steps] = []
        self._is_up_to_date = False
        self._failed_reads = 0
        self.counter(
            "ringfence_metric_read_failures_total",
            "Readings that raised an exception and are missing from a scrape.",
            lambda: self._failed_reads,
        )

    def gauge(
        self,
        name: str,
        help_text: str,
        read: Callable[[], Reading],
        *,
        labels: Labels = (),
        merge: Merge = "sum",
    ) -> None:
        """Show what ``read`` returns at each scrape: a number, or numbers by label values, ordered as ``labels``."""
        self._add(name, "gauge", help_text, lambda: _samples(read()), labels=labels, merge=merge)

    def counter(self, name: str, help_text: str, read: Callable[[], Reading], *, labels: Labels = ()) -> None:
        """Like :meth:`gauge`, for a number that only grows; ``name`` ends in ``_total``."""
        if not name.endswith("_total"):
            raise ValueError(f"counter {name!r} must end in _total")
        self._add(name, "counter", help_text, lambda: _samples(read()), labels=labels)

    def histogram(
        self, name: str, help_text: str, *, bounds: tuple[float, ...], labels: Mapping[str, Labels] | None = None
    ) -> HistogramFamily:
        """Register histograms with these upper ``bounds``, ascending; ``labels`` gives all values of each label."""
        if not bounds or list(bounds) != sorted({float(bound) for bound in bounds}):
            raise ValueError(f"the bounds of {name!r} must be floats, ascending")
        known = labels or {}
        made = HistogramFamily(tuple(map(float, bounds)), known)
        self._add(name, "histogram", help_text, made.samples, labels=tuple(known))
        return made

    def before_scrape(self, steps: Steps) -> None:
        """Go through ``steps`` before each scrape, to bring lazily kept numbers up to date.

        Each step is short; others run in between.
        """
        self._before.append(steps)

    def steps(self) -> Iterator[None]:
        """What has to be gone through before :meth:`read`, which else does it in one go."""
        for steps in self._before:
            yield from steps()
        self._is_up_to_date = True

    def read(self) -> Iterator[FamilyReading]:
        """The families one after the other, each read when its samples are iterated.

        A reading that fails is logged, counted and left out.
        """
        if not self._is_up_to_date:
            for _ in self.steps():
                pass
        self._is_up_to_date = False
        for family in self._families.values():
            yield FamilyReading(
                name=family.name,
                kind=family.kind,
                help_text=family.help_text,
                labels=family.labels,
                merge=family.merge,
                samples=self._guarded(family),
            )

    def _guarded(self, family: _Family) -> Iterator[Sample]:
        try:
            yield from family.samples()
        except Exception:
            self._failed_reads += 1
            _LOG.exception("metric %s could not be read", family.name)

    def _add(
        self,
        name: str,
        kind: Kind,
        help_text: str,
        samples: Callable[[], Iterable[Sample]],
        *,
        labels: Labels,
        merge: Merge = "sum",
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a metric name")
        if name in self._families:
            raise ValueError(f"metric {name!r} is registered twice")
        self._families[name] = _Family(
            name=name, kind=kind, help_text=help_text, labels=labels, merge=merge, samples=samples
        )


def _samples(reading: Reading) -> Iterator[Sample]:
    if isinstance(reading, int | float):
        yield Sample((), reading)
    else:
        # A copy of a mapping: it may change while the scrape is being sent.
        for values, value in list(reading.items()) if isinstance(reading, Mapping) else reading:
            yield Sample(values, value)
