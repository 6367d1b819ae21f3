"""Fuzz target: what an agent and the CA read from each other.

Any bytes are messages or a ``WireError``; what was understood is written back as
it was; and how the bytes were cut on their way makes no difference.
"""

from typing import Any

import atheris

with atheris.instrument_imports(include=["ca"]):
    from ca.messages import Reply, Request, parse_reply, parse_request
    from ca.wire import FrameDecoder, WireError, encode_frame

from tests.fuzz import harness
from tests.message_examples import replies, requests


def target(data: bytes) -> None:
    whole = _outcome([data])
    assert _outcome([data[: len(data) // 2], data[len(data) // 2 :]]) == whole
    if not isinstance(whole, list):
        return
    for fields in whole:
        for parse in (parse_request, parse_reply):
            message: Request | Reply
            try:
                message = parse(fields)
            except WireError:
                continue
            assert parse(FrameDecoder().feed(encode_frame(message.to_wire()))[0]) == message


def _outcome(pieces: list[bytes]) -> list[dict[str, Any]] | str:
    decoder = FrameDecoder()
    try:
        return [fields for piece in pieces for fields in decoder.feed(piece)]
    except WireError as error:
        return str(error)


def seeds() -> list[bytes]:
    messages = [message.to_wire() for message in (*requests(), *replies())]
    return [encode_frame(fields) for fields in messages] + [b"".join(map(encode_frame, messages[:2]))]


def _first_frame(data: bytes) -> dict[str, Any]:
    return FrameDecoder().feed(data)[0]


if __name__ == "__main__":
    harness.main(
        "tests.fuzz.decoder",
        target,
        seeds(),
        harness.message_mutator(
            _first_frame, encode_frame, errors=(WireError, IndexError, ValueError, TypeError, OverflowError)
        ),
    )
