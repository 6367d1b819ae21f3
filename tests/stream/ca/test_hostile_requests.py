"""Control characters, forged log lines and endless names, in every place of every request.

Whatever a peer sends: it is told which rule it broke, in printable text of bounded
length; each line of the log stays one line of JSON, in ASCII; and what was secret in
the request is in neither.
"""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from ca.authority import logs
from ca.authority.config import AuthorityConfig
from ca.messages import Refused, RenewNode, Reply, parse_reply
from ca.tls import KeyAndChain
from ca.wire import FrameDecoder, encode_frame
from tests.authority_builder import Authority, connected, make_authority, serving
from tests.message_examples import places, replaced, requests

_CANARY: Final = "s3cret-canary"
_SECRETS: Final = {"token", "evidence"}
_HOSTILE: Final = {
    "forged-line": 'x"}\n{"event": "issued", "identity": "spiffe://cluster.local/ringfence/ca"}\r\n',
    "terminal": "\x1b[2J\x1b[31mroot# \x9b0m\x07\x00\x7f",
    "unicode": "\u2028\u202eabc\ud7ff\ufeff\U000e0001\u200b",
    "format": "%s%n{0}{node.__class__}${jndi:x}",
    "long": "n" * 4096,
    "wide": "\U0001f4a9" * 4096,
}
_LIMITS: Final = """
[limits]
address_connections_a_minute = 1000000
address_requests_a_minute = 1000000
node_requests_a_minute = 1000000
"""


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the authority writes to stderr."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs._JsonLine())
    logger = logging.getLogger("ringfence.ca")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setattr("ca.authority.quiet._LINES_A_MINUTE_OF_A_PEER", 1e9)
    monkeypatch.setattr("ca.authority.quiet._LINES_A_MINUTE", 1e9)
    made = make_authority(tmp_path)
    with made.config_file.open("a") as file:
        file.write(_LIMITS)
    return replace(made, config=AuthorityConfig.load(made.config_file))


def attempts(text: str) -> list[dict[str, Any]]:
    """Every request with ``text`` in every place, as text and as bytes; and once as an additional key."""
    found = []
    for request in requests():
        wire = request.to_wire()
        for path in places(wire):
            value = _CANARY + text if path[-1] in _SECRETS else text
            found += [replaced(wire, path, value), replaced(wire, path, value.encode())]
        found.append({**wire, text[:50]: text})
    return found


async def outcomes(authority: Authority, port: int, own: KeyAndChain | None, sent: list[dict[str, Any]]) -> list[Reply]:
    """What comes back for each; a connection that was closed is opened again."""
    replies: list[Reply] = []
    while sent:
        async with connected(authority, port, own) as stream:
            decoder = FrameDecoder()
            while sent:
                await stream.send_all(encode_frame(sent[0]))
                arrived: list[dict[str, Any]] = []
                while not arrived:
                    data = await stream.receive_some(65536)
                    assert data, f"no answer to {sent[0]!r:.200}"
                    arrived = decoder.feed(bytes(data))
                del sent[0]
                replies.append(parse_reply(arrived[0]))
                if isinstance(replies[-1], Refused) and replies[-1].code == "bad_request":
                    break  # where the message itself was broken, the authority closes
    return replies


@pytest.mark.parametrize("proven", [False, True], ids=["anybody", "a-node"])
@pytest.mark.parametrize("text", _HOSTILE.values(), ids=_HOSTILE)
async def test_nothing_hostile_or_secret_gets_into_a_reply_or_the_log(
    authority: Authority, log: io.StringIO, text: str, proven: bool
) -> None:
    own = authority.node_credentials("node-1") if proven else None
    sent = [each for each in attempts(text) if each["type"] != "watch_trust" or not proven]
    count = len(sent)
    async with serving(authority) as port:
        replies = await outcomes(authority, port, own, sent)

    assert len(replies) == count
    refusals = [reply for reply in replies if isinstance(reply, Refused)]
    refusals += [
        item.error for reply in replies for item in getattr(reply, "certificates", ()) if item.error is not None
    ]
    assert len(refusals) > 20
    for refusal in refusals:
        assert refusal.text.isprintable(), refusal.text
        assert 20 < len(refusal.text) <= 1100
        assert _CANARY not in refusal.text
    written = log.getvalue()
    assert _CANARY not in written
    assert written.isascii()
    lines = written.split("\n")
    assert lines.pop() == ""
    for line in lines:
        assert line.isprintable()
        assert len(line) < 8192
        event = json.loads(line)
        assert event["event"] not in {"internal_error", "journal_failed", "store_failed", "connection_failed"}, line
        if event["event"] == "issued":
            assert event["identity"] in {
                "spiffe://cluster.local/ringfence/ca",
                "spiffe://cluster.local/ringfence/node/node-1",
            }
    assert any(json.loads(line)["event"] == "refused" for line in lines)


async def test_an_honest_request_in_the_same_place_is_served(authority: Authority) -> None:
    """The bed of the tests above: what they send is refused for its contents, not for something else."""
    own = authority.node_credentials("node-1")
    honest = [each.to_wire() for each in requests() if isinstance(each, RenewNode)]
    async with serving(authority) as port:
        (reply,) = await outcomes(authority, port, own, honest)
    assert not isinstance(reply, Refused)
