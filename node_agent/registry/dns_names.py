"""When to ask DNS for which name, and what is in force of its answers.

Sans-I/O: callers pass ``now`` (monotonic seconds), and the source of draws once.

    due --asked--> asking --answered--> waits for its TTL ------------> due
                   asking --failed----> waits, each time longer ------> due

A name is two questions, A and AAAA, each on its own.  The addresses of an answer
are in force until the next one; failures keep them, for an hour at most.  An
address that is no longer in the answers is still known as the name's for ten
minutes or a little more, because applications that have resolved it go on
connecting to it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from node_agent.registry.changes import ResolvedName

MIN_TTL_S: Final = 5.0  # what says 0 is still not asked for each connection
MAX_TTL_S: Final = 300.0
KEEP_S: Final = 3600.0
RECENT_S: Final = 600.0
MAX_ADDRESSES: Final = 64  # of one question; an answer in one UDP message of 1232 bytes has at most 75
_MAX_RECENT: Final = 1024  # a name that answers with others each time
_JITTER: Final = 0.1
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


class RecordType(StrEnum):
    """Of addresses."""

    A = "A"
    AAAA = "AAAA"


class Question(NamedTuple):
    name: str
    record: RecordType


class _State:
    """One question: its last answer, and when it is asked next."""

    __slots__ = ("addresses", "answered_at", "due_at", "failures", "is_asking", "seen", "why")

    def __init__(self, now: float) -> None:
        self.due_at = now
        self.is_asking = False
        self.addresses: tuple[str, ...] = ()
        self.answered_at = -math.inf
        self.failures = 0
        self.why = ""
        self.seen: dict[str, float] = {}  # when an address was last in force, the longest ago first


class DnsNames:
    """Every name that somebody wants.

    Args:
        draw: numbers of [0, 1), so that many agents do not ask at once.
    """

    def __init__(self, *, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._states: dict[Question, _State] = {}

    def want(self, names: Iterable[str], now: float) -> list[str]:
        """From now on exactly these; returns those that nobody wants any more."""
        wanted = {Question(name, record) for name in names for record in RecordType}
        gone = self._states.keys() - wanted
        for question in gone:
            del self._states[question]
        for question in sorted(wanted - self._states.keys()):
            self._states[question] = _State(now)
        return sorted({question.name for question in gone})

    def due(self, now: float, most: int) -> list[Question]:
        """What to ask now, the longest due first; each is to be ``answered`` or to have ``failed``."""
        ready = sorted(
            (state.due_at, question)
            for question, state in self._states.items()
            if state.due_at <= now and not state.is_asking
        )[:most]
        for _, question in ready:
            self._states[question].is_asking = True
        return [question for _, question in ready]

    def next_at(self) -> float:
        """When something is due next; infinity if that depends on an answer."""
        return min((each.due_at for each in self._states.values() if not each.is_asking), default=math.inf)

    def answered(self, question: Question, addresses: Iterable[str], ttl_s: float, now: float) -> None:
        """DNS said this, maybe that there are none; harmless when nobody wants it any more."""
        state = self._states.get(question)
        if state is None:
            return
        self._remember(state, now)
        state.addresses = tuple(sorted(set(addresses))[:MAX_ADDRESSES])
        state.answered_at, state.failures, state.why = now, 0, ""
        state.is_asking = False
        state.due_at = now + min(max(ttl_s, MIN_TTL_S), MAX_TTL_S) * (1 + _JITTER * self._draw())

    def failed(self, question: Question, why: str, now: float) -> None:
        """There was no answer, or one that says the name does not exist."""
        state = self._states.get(question)
        if state is None:
            return
        self._remember(state, now)
        if now - state.answered_at >= KEEP_S:
            state.addresses = ()
        state.failures += 1
        state.why = why
        state.is_asking = False
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(state.failures, 10), _LONGEST_PAUSE_S)
        state.due_at = now + pause_s * (1 + self._draw()) / 2

    def resolved(self, name: str) -> ResolvedName | None:
        """What is in force of a name; None if nobody wants it."""
        states = [state for record in RecordType if (state := self._states.get(Question(name, record))) is not None]
        if not states:
            return None
        addresses = tuple(ip for state in states for ip in state.addresses)
        recent = sorted({ip for state in states for ip in state.seen} - set(addresses))
        return ResolvedName(name=name, addresses=addresses, recent=tuple(recent))

    def is_pending(self) -> bool:
        """Whether a name waits for the end of its very first question."""
        return any(not state.failures and state.answered_at == -math.inf for state in self._states.values())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Names that can not be resolved, and why."""
        for name in sorted({question.name for question in self._states}):
            states = [self._states[Question(name, record)] for record in RecordType]
            whys = list(dict.fromkeys(state.why for state in states if state.why))
            if any(state.addresses for state in states):
                if whys:
                    yield name, f"{'; '.join(whys)}; its last addresses stay in force for up to an hour"
            elif whys:
                yield name, "; ".join(whys)
            elif all(state.answered_at > -math.inf for state in states):
                yield name, "it has no address"

    def _remember(self, state: _State, now: float) -> None:
        """The addresses that were in force until now, and those of before that are not too old."""
        for ip in state.addresses:
            state.seen.pop(ip, None)
            state.seen[ip] = now
        for ip in [each for each, at in state.seen.items() if now - at >= RECENT_S]:
            del state.seen[ip]
        while len(state.seen) > _MAX_RECENT:
            del state.seen[next(iter(state.seen))]
