"""A scrape as Prometheus makes it, through a real HTTP conversation."""

import gzip
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import h11
import trio
import trio.testing

from ca.http_server import HttpServer
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.scrape import Pace, metrics_preparation, metrics_routes

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def metrics_of_a_node() -> Metrics:
    metrics = Metrics()
    metrics.gauge("ringfence_tunnels", "Tunnels.", lambda: {("idle",): 3}, labels=("state",))
    metrics.counter("ringfence_many_total", "Many.", lambda: {(str(n),): n for n in range(500)}, labels=("n",))
    return metrics


async def scrape(server: HttpServer, **fields: str) -> tuple[int, dict[str, str], bytes]:
    """One GET of /metrics; the fields' names are written with underscores."""
    async with trio.open_nursery() as nursery:
        listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(server.run, listener)
        stream = await trio.testing.open_stream_to_socket_listener(listener[0])
        client = h11.Connection(h11.CLIENT)
        headers = [("Host", "agent"), *((name.replace("_", "-"), value) for name, value in fields.items())]
        for part in (h11.Request(method="GET", target="/metrics", headers=headers), h11.EndOfMessage()):
            await stream.send_all(client.send(part) or b"")
        status, answered, body = 0, dict[str, str](), b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                client.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Response):
                status, answered = event.status_code, {k.decode(): v.decode() for k, v in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
        await stream.aclose()
        nursery.cancel_scope.cancel()
    return status, answered, body


async def test_a_scraper_gets_the_format_that_it_asks_for_compressed_or_not() -> None:
    server = HttpServer(metrics_routes(metrics_of_a_node().read), prepare=metrics_preparation(None))

    status, headers, text = await scrape(server)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "content-encoding" not in headers
    assert b'\nringfence_tunnels{state="idle"} 3.0\n' in text
    assert b"# EOF" not in text

    status, headers, body = await scrape(server, Accept=OPENMETRICS, Accept_Encoding="gzip")
    assert (status, headers["content-type"], headers["content-encoding"]) == (200, OPENMETRICS, "gzip")
    assert headers["vary"] == "Accept, Accept-Encoding"
    openmetrics = gzip.decompress(body)
    assert openmetrics.endswith(b'ringfence_many_total{n="499"} 499.0\n# EOF\n')
    assert len(body) < len(openmetrics) / 5


async def test_others_have_their_turn_while_a_long_answer_is_written() -> None:
    chunks: list[int] = []
    turns = 0

    def reading() -> Iterator[tuple[tuple[str, ...], float]]:
        for number in range(3200):
            if not number % 32:
                chunks.append(turns)
            yield (str(number),), number

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    metrics = Metrics()
    metrics.counter("ringfence_many_total", "Many.", reading, labels=("n",))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        _, _, body = await scrape(HttpServer(metrics_routes(metrics.read)), Accept_Encoding="gzip")
        nursery.cancel_scope.cancel()

    assert gzip.decompress(body).count(b"\nringfence_many_total{") == 3200
    assert len(chunks) == 100
    # Tasks run once a turn, in no particular order: two parts may see the other at the same count, a third can not.
    assert max(Counter(chunks).values()) <= 3, "the parts of the answer were not made in turns of their own"


def test_of_many_answers_at_once_one_part_is_written_and_then_others_have_their_turn() -> None:
    now = 0.0
    written: list[int] = []

    def parts(number: int) -> Iterator[bytes]:
        for _ in range(5):
            written.append(number)
            yield b"x"

    pace = Pace(lambda: now)
    answers = {number: pace.spaced(parts(number)) for number in range(60)}
    collected = dict.fromkeys(answers, b"")
    for turn in range(10_000):
        before = len(written)
        for number in list(answers):
            part = next(answers[number], None)
            if part is None:
                del answers[number]
            else:
                collected[number] += part
        assert len(written) <= before + 1, f"more than one part in turn {turn}"
        now += 0.001
        if not answers:
            break
    assert set(collected.values()) == {b"xxxxx"}


def test_one_answer_alone_waits_for_nobody_also_after_others_were_given_up() -> None:
    pace = Pace(lambda: 0.0)
    given_up = pace.spaced(iter([b"a", b"b"]))
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]

    assert list(pace.spaced(iter([b"a", b"b", b"c"]))) == [b"a", b"b", b"c"]


def test_an_agent_that_nobody_scrapes_does_not_load_prometheus_client() -> None:
    program = "import sys, node_agent.agent; print([name for name in sys.modules if name.startswith('prometheus')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
