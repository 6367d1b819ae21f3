"""What a worker answers when the parent asks on behalf of an operator or of Prometheus.

In parts, with a pause between them: thousands of rows must not hold up the
connections.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Final, cast

import trio

from node_agent.data_path import DataPath
from node_agent.telemetry.debugging.process import ProcessDebugging
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.process_metrics import resident_bytes
from node_agent.workers import figures
from node_agent.workers.channel import Channel
from node_agent.workers.messages import (
    Answer,
    AnswerRow,
    BlockRow,
    Count,
    DebugRow,
    FamilyRow,
    LiveRow,
    LoadRow,
    Question,
    SampleRow,
    Topic,
)

_ROWS_A_PART: Final = 64
_SAMPLES_A_ROW: Final = 64  # of a row of metrics: a quarter of a millisecond
_FAMILY_ROWS_A_PART: Final = 2


async def answer(
    question: Question,
    channel: Channel,
    *,
    data_path: DataPath,
    metrics: Metrics,
    debugging: ProcessDebugging,
    problems: Iterable[str] = (),
) -> None:
    """Post the rows of one answer; with the counts go the ``problems`` that operators should know."""
    if question.topic is Topic.METRICS:
        for _ in metrics.steps():
            await trio.lowlevel.checkpoint()
    rows = iter(rows_of(question.topic, data_path=data_path, metrics=metrics, debugging=debugging))
    if question.topic is Topic.COUNTS:
        rows = itertools.chain(rows, [DebugRow(text=each) for each in problems])
    rows_a_part = _FAMILY_ROWS_A_PART if question.topic is Topic.METRICS else _ROWS_A_PART
    part = tuple(itertools.islice(rows, rows_a_part))
    while True:
        following = tuple(itertools.islice(rows, rows_a_part))
        channel.post(Answer(number=question.number, rows=part, is_last=not following))
        if not following:
            return
        part = following
        await trio.lowlevel.checkpoint()


def last_figures(*, data_path: DataPath, metrics: Metrics, debugging: ProcessDebugging) -> Answer:
    """What a worker says before it ends, so that nothing it has counted is lost."""
    for _ in metrics.steps():
        pass  # nobody is left to be held up
    rows = [
        row
        for topic in (Topic.COUNTS, Topic.METRICS)
        for row in rows_of(topic, data_path=data_path, metrics=metrics, debugging=debugging)
    ]
    return Answer(number=0, rows=tuple(rows), is_last=True)


def rows_of(topic: Topic, *, data_path: DataPath, metrics: Metrics, debugging: ProcessDebugging) -> Iterable[AnswerRow]:
    """The rows of one topic; what they walk may change between two of them."""
    match topic:
        case Topic.COUNTS:
            return _counts(data_path)
        case Topic.CONNECTIONS:
            return (LiveRow(cells=cast("dict[str, str]", row)) for row in data_path.access_log.live())
        case Topic.RECENT:
            return (LiveRow(cells=row) for row in data_path.access_log.recent())
        case Topic.ARCHIVE:
            return (BlockRow(records=block) for block in data_path.access_log.archive())
        case Topic.LOADS:
            # A list: the balancer's table may not be held while others pick.
            return [
                LoadRow(
                    ip=address.ip,
                    port=address.port,
                    uid=uid,
                    open_connections=load.open_connections,
                    latency_s=load.latency_s,
                    health=load.health,
                    why=load.why,
                    ejected_for_s=load.ejected_for_s,
                )
                for address, uid, load in data_path.balancer.loads(trio.current_time())
            ]
        case Topic.METRICS:
            return _metrics(metrics)
        case Topic.PROFILE:
            return [DebugRow(text=json.dumps(debugging.profile()))]
        case Topic.STACKS:
            return [DebugRow(text=json.dumps(debugging.stacks()))]
        case Topic.MEMORY:
            return [DebugRow(text=json.dumps(debugging.memory()))]


def _counts(data_path: DataPath) -> list[AnswerRow]:
    return [
        Count(name=figures.OPEN, value=data_path.access_log.open_connections),
        Count(name=figures.TOTAL, value=data_path.access_log.total_connections),
        Count(name=figures.TUNNELS_IDLE, value=data_path.tunnels.idle_count),
        Count(name=figures.TUNNELS_BUSY, value=data_path.tunnels.busy_count),
        Count(name=figures.RESIDENT_BYTES, value=resident_bytes()),
    ]


def _metrics(metrics: Metrics) -> Iterator[AnswerRow]:
    for family in metrics.read():
        samples = (
            SampleRow(values=sample.values, value=sample.value, suffix=sample.suffix) for sample in family.samples
        )
        part = tuple(itertools.islice(samples, _SAMPLES_A_ROW))
        while True:
            yield FamilyRow(
                name=family.name,
                kind=family.kind,
                help_text=family.help_text,
                labels=family.labels,
                merge=family.merge,
                samples=part,
            )
            part = tuple(itertools.islice(samples, _SAMPLES_A_ROW))
            if not part:
                break
