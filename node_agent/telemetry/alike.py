"""Connections that are alike but for their times, ports and bytes: recorded many at a time.

Where nothing but the kernel carries a connection (proxy/lane_table.py), its two
access records are nearly all that it costs the agent.  Between the same two
workloads they are the same text but for some numbers, so the text is made once,
and the rest put in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from node_agent.errors import CloseReason
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.response_flags import ResponseFlag
from node_agent.telemetry.told import access_record, durations, json_text, outcome, parties, timestamp
from node_agent.telemetry.traffic import DIRECTIONS, Series, Traffic

RECORDS_EACH: Final = 2  # outbound, then inbound
_ID: Final = '"id":""'


class _Side(NamedTuple):
    """One direction's record: what is before the time, id and port, the bytes, and after the times."""

    to_time: str
    to_id: str
    to_port: str
    to_bytes: str
    to_end: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likeness:
    """What two records of a connection have in common with those of others; both ended well."""

    outbound: _Side
    inbound: _Side
    series: tuple[Series, Series]


class Ending(NamedTuple):
    """The end of one connection.  ``ended_at`` is monotonic seconds."""

    likeness: Likeness
    client_port: int
    ended_at: float
    duration_ms: float
    connect_ms: float
    sent_bytes: int
    received_bytes: int


def likeness(outbound: ConnectionRecord, inbound: ConnectionRecord, traffic: Traffic) -> Likeness:
    """Of two records without ids, with everything noted, of connections that opened and ended well."""
    return Likeness(
        outbound=_side(outbound),
        inbound=_side(inbound),
        series=(
            traffic.series(outbound.traffic_key(), ResponseFlag.NONE),
            traffic.series(inbound.traffic_key(), ResponseFlag.NONE),
        ),
    )


def _side(record: ConnectionRecord) -> _Side:
    assert not record.id
    assert record.source_address is not None
    reason = CloseReason.OK
    whole = access_record(record, reason, now=record.began_at, at_s=0.0)
    between = parties(record)
    to_time, _, rest = whole.partition(timestamp(0.0))
    to_id, _, rest = rest.partition(_ID)
    to_port, _, _ = rest.partition(between)
    port = f'{record.source_address.port}"'
    assert to_port.endswith(port)
    return _Side(
        to_time, f"{to_id}{_ID[:-1]}", f'"{to_port.removesuffix(port)}', f'"{between}', outcome(record, reason)
    )


def count(endings: Sequence[Ending], traffic: Traffic) -> None:
    """Count each as opened and as closed, with its bytes and times."""
    sums: dict[Likeness, list[int]] = {}
    for ending in endings:
        each = sums.get(ending.likeness)
        if each is None:
            each = sums[ending.likeness] = [0, 0, 0]
        each[0] += 1
        each[1] += ending.sent_bytes
        each[2] += ending.received_bytes
    for alike, (connections, sent_bytes, received_bytes) in sums.items():
        for series in alike.series:
            traffic.count_ended(series, connections, sent_bytes=sent_bytes, received_bytes=received_bytes)
    connect_s = sorted([each.connect_ms / 1000 for each in endings])
    lifetime_s = sorted([each.duration_ms / 1000 for each in endings])
    for direction in DIRECTIONS:
        traffic.connect_s[direction].observe_all(connect_s)
        traffic.lifetime_s[direction].observe_all(lifetime_s)


class AlikeRecords:
    """The records of ``endings`` as JSON text, whenever they are asked for.

    Ids are ``id_prefix`` and a number, from ``first`` on; ``epoch_s`` is when, in
    seconds since the epoch, the time of ``ended_at`` was 0.
    """

    __slots__ = ("_endings", "_epoch_s", "_first", "_id_prefix")

    def __init__(self, endings: Sequence[Ending], *, id_prefix: str, first: int, epoch_s: float) -> None:
        self._endings = endings
        self._id_prefix = json_text(id_prefix)[1:-1]
        self._first = first
        self._epoch_s = epoch_s

    def texts(self, begin: int, end: int) -> list[str]:
        """Of the records ``begin`` to ``end``, which are even numbers: both of a connection or none."""
        made: list[str] = []
        number, id_prefix, epoch_s = self._first + begin, self._id_prefix, self._epoch_s
        last_ms, time = -1, ""
        for alike, port, ended_at, duration_ms, connect_ms, sent_bytes, received_bytes in self._endings[
            begin // RECORDS_EACH : end // RECORDS_EACH
        ]:
            at_s = epoch_s + ended_at
            if int(at_s * 1000) != last_ms:  # else the text of the last one: many end in a millisecond
                last_ms, time = int(at_s * 1000), timestamp(at_s)
            moved = f',"sent_bytes":{sent_bytes},"received_bytes":{received_bytes}{durations(duration_ms, connect_ms)}'
            for to_time, to_id, to_port, to_bytes, to_end in (alike.outbound, alike.inbound):
                made.append(f"{to_time}{time}{to_id}{id_prefix}{number}{to_port}{port}{to_bytes}{moved}{to_end}")
                number += 1
        return made
