"""The names outside, as a machine against an oracle: when DNS is asked, and what is in force of its answers."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node_agent.registry.dns_names import (
    KEEP_S,
    MAX_ADDRESSES,
    MAX_TTL_S,
    MIN_TTL_S,
    RECENT_S,
    DnsNames,
    Question,
    RecordType,
)

_NAMES = [f"{letter}.example" for letter in "abc"]
_ADDRESSES = [f"192.0.2.{number}" for number in range(1, 90)]


class _Said:
    """What the oracle knows of one question."""

    def __init__(self, now: float) -> None:
        self.earliest = now
        self.latest = now
        self.addresses: set[str] = set()
        self.answered_at = -math.inf
        self.history: dict[str, float] = {}  # when an address was last known to be in force
        self.is_asked = False


class Names(RuleBasedStateMachine):
    """Time goes on; names come and go; questions are answered, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.draw = 0.0
        self.names = DnsNames(draw=lambda: self.draw)
        self.said: dict[Question, _Said] = {}

    @rule(names=st.sets(st.sampled_from(_NAMES)))
    def want(self, names: set[str]) -> None:
        before = {question.name for question in self.said}
        assert self.names.want(names, self.now) == sorted(before - names)
        self.said = {
            question: self.said.get(question) or _Said(self.now)
            for name in names
            for question in (Question(name, record) for record in RecordType)
        }

    @rule(seconds=st.floats(0, 30) | st.floats(30, 2 * KEEP_S), draw=st.floats(0, 1, exclude_max=True))
    def wait(self, seconds: float, draw: float) -> None:
        self.now += seconds
        self.draw = draw

    @rule(most=st.integers(0, 4))
    def ask(self, most: int) -> None:
        asked = self.names.due(self.now, most)
        assert len(asked) == len(set(asked)) <= most
        for question in asked:
            said = self.said[question]
            assert not said.is_asked, "never twice at once"
            assert self.now >= said.earliest, "never before its time"
            said.is_asked = True
        overdue = [each for each in self.said.values() if not each.is_asked and self.now >= each.latest]
        assert len(asked) == most or not overdue, "what is over is asked"

    def _asked(self) -> list[Question]:
        return [question for question, said in self.said.items() if said.is_asked]

    @precondition(lambda self: self._asked())
    @rule(
        data=st.data(),
        addresses=st.sets(st.sampled_from(_ADDRESSES), max_size=5) | st.just(set(_ADDRESSES)),
        ttl_s=st.floats(0, 100000),
    )
    def answer(self, data: st.DataObject, addresses: set[str], ttl_s: float) -> None:
        question = data.draw(st.sampled_from(self._asked()))
        self._ended(question)
        said = self.said[question]
        self.names.answered(question, addresses, ttl_s, self.now)
        said.addresses = set(sorted(addresses)[:MAX_ADDRESSES])
        said.answered_at = self.now
        ttl_s = min(max(ttl_s, MIN_TTL_S), MAX_TTL_S)
        said.earliest, said.latest = self.now + ttl_s, self.now + 1.1 * ttl_s
        assert (question.name, "") not in list(self.names.problems())

    @precondition(lambda self: self._asked())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        question = data.draw(st.sampled_from(self._asked()))
        self._ended(question)
        said = self.said[question]
        self.names.failed(question, "no answer", self.now)
        if self.now - said.answered_at >= KEEP_S:
            said.addresses = set()
        said.earliest, said.latest = self.now + 1, self.now + 60
        assert any(name == question.name and "no answer" in why for name, why in self.names.problems())

    def _ended(self, question: Question) -> None:
        said = self.said[question]
        said.is_asked = False
        said.history |= dict.fromkeys(said.addresses, self.now)
        said.history = {ip: at for ip, at in said.history.items() if self.now - at < RECENT_S}

    @rule(name=st.just("nobody.example"))
    def hear_of_what_nobody_wants(self, name: str) -> None:
        self.names.answered(Question(name, RecordType.A), ["192.0.2.1"], 60, self.now)
        self.names.failed(Question(name, RecordType.A), "no answer", self.now)
        assert self.names.resolved(name) is None

    @invariant()
    def what_is_in_force_is_what_was_said(self) -> None:
        for name in {question.name for question in self.said}:
            resolved = self.names.resolved(name)
            assert resolved is not None
            mine = [self.said[Question(name, record)] for record in RecordType]
            assert set(resolved.addresses) == mine[0].addresses | mine[1].addresses
            assert set(resolved.recent) == set().union(*(each.history for each in mine)) - set(resolved.addresses)

    @invariant()
    def it_wakes_in_time(self) -> None:
        waiting = [each for each in self.said.values() if not each.is_asked]
        at = self.names.next_at()
        if waiting:
            assert min(each.earliest for each in waiting) <= at <= min(each.latest for each in waiting)
        else:
            assert at == math.inf


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
