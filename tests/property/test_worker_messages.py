"""What the parent and its workers tell each other arrives as it was sent, however it is cut into pieces."""

from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import WireError
from ca.manifests import ObjectKey
from ca.spiffe import SpiffeId
from ca.wire import encode_frame
from node_agent.config import CaSection, Config, HostPort, NodeSection
from node_agent.errors import CloseReason
from node_agent.model import Locality, ObjectName, PeerAddress, Workload
from node_agent.registry.changes import RegistryObject
from node_agent.workers import messages as say
from node_agent.workers import tunnel_messages as tunnels
from tests.property.test_registry import OBJECTS

TEXT = st.text(max_size=20)
# What fits into a message: whole numbers of 64 bits, and finite ones.
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))

NUMBERS = st.integers(0, 2**63 - 1)
VALUES = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
IDENTITIES = st.builds(SpiffeId.workload, st.just("cluster.local"), st.just("shop"), st.sampled_from(["web", "cart"]))
PEERS = st.builds(PeerAddress, ip=TEXT, port=NUMBERS)
AGES = st.floats(0, 1e9)
REASONS = st.sampled_from(CloseReason)
WORKLOADS = st.builds(
    Workload,
    uid=TEXT,
    name=st.builds(ObjectName, TEXT, TEXT),
    service_account=TEXT,
    node=TEXT,
    addresses=st.lists(TEXT, max_size=2).map(tuple),
    identity=IDENTITIES,
    enrolled=st.booleans(),
    ready=st.booleans(),
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    locality=st.builds(Locality, region=TEXT, zone=TEXT),
    named_ports=st.dictionaries(TEXT, st.integers(1, 65535), max_size=3),
)
CONFIG = Config(
    agent=NodeSection(node="node-1", workers=2),
    ca=CaSection(address=(HostPort(host="192.0.2.1", port=15012),), bundle_file=Path("/etc/ringfence/bundle.pem")),
)
TO_WORKER = st.one_of(
    st.builds(
        say.Start,
        worker=NUMBERS,
        workers=NUMBERS,
        run=TEXT,
        config=st.just(CONFIG),
        log_level=TEXT,
        log_modules=st.dictionaries(TEXT, TEXT, max_size=3),
        trust=st.binary(max_size=50),
    ),
    st.builds(say.RegistryPart, upserts=st.lists(OBJECTS, max_size=5).map(tuple), is_last=st.booleans()),
    st.builds(say.TrustChanged, trust=st.binary(max_size=50)),
    st.builds(
        say.SvidIssued,
        identity=IDENTITIES,
        key_der=st.binary(max_size=20),
        chain_der=st.lists(st.binary(max_size=20), max_size=3).map(tuple),
    ),
    st.builds(say.SvidGone, identity=IDENTITIES),
    st.builds(say.StateComplete),
    st.builds(say.ServePod, workload=WORKLOADS),
    st.builds(say.PodChanged, workload=WORKLOADS),
    st.builds(say.EndPod, uid=TEXT, reason=REASONS, detail=TEXT),
    st.builds(say.IdentityAnswered, number=NUMBERS, reason=st.none() | REASONS, detail=TEXT),
    st.builds(say.Question, number=NUMBERS, topic=st.sampled_from(say.Topic)),
    st.builds(say.LogLevel, level=TEXT, modules=st.dictionaries(TEXT, TEXT, max_size=3)),
    st.builds(say.StartProfile, seconds=st.floats(0.1, 60.0)),
    st.builds(say.Drain),
    st.builds(say.CutAll, reason=REASONS, detail=TEXT),
    st.builds(tunnels.TakeTunnel, uid=TEXT, peer=PEERS, accepted_at=AGES, is_back=st.booleans()),
    st.builds(tunnels.PassedOn),
)
ROWS = st.one_of(
    st.builds(say.Count, name=TEXT, value=VALUES),
    st.builds(say.DebugRow, text=TEXT),
    st.builds(say.LiveRow, cells=st.dictionaries(TEXT, st.none() | TEXT | VALUES, max_size=4)),
    st.builds(
        say.LoadRow,
        ip=TEXT,
        port=NUMBERS,
        uid=TEXT,
        open_connections=NUMBERS,
        latency_s=st.none() | st.floats(0, 10),
    ),
    st.builds(
        say.FamilyRow,
        name=TEXT,
        kind=TEXT,
        help_text=TEXT,
        labels=st.lists(TEXT, max_size=2).map(tuple),
        merge=TEXT,
        samples=st.lists(
            st.builds(say.SampleRow, values=st.lists(TEXT, max_size=2).map(tuple), value=VALUES, suffix=TEXT),
            max_size=3,
        ).map(tuple),
    ),
)
TO_PARENT = st.one_of(
    st.builds(say.Ready),
    st.builds(say.PodServed, uid=TEXT),
    st.builds(say.PodClosed, uid=TEXT),
    st.builds(say.IdentityAsked, number=NUMBERS, identity=IDENTITIES),
    st.builds(say.Answer, number=NUMBERS, rows=st.lists(ROWS, max_size=4).map(tuple), is_last=st.booleans()),
    st.builds(tunnels.TunnelShared, uid=TEXT, label=TEXT),
    st.builds(tunnels.SharedTunnelEnded, uid=TEXT, label=TEXT),
    st.builds(tunnels.PassOn, uid=TEXT, label=TEXT, peer=PEERS, accepted_at=AGES),
    st.builds(tunnels.Taken),
)


@pytest.mark.parametrize(("kind", "sent"), [(say.ToWorker, TO_WORKER), (say.ToParent, TO_PARENT)])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_messages_arrive_as_they_were_sent_in_one_piece_and_byte_by_byte(
    kind: object, sent: st.SearchStrategy[say.Message], data: st.DataObject
) -> None:
    messages = data.draw(st.lists(sent, min_size=1, max_size=4))
    stream = b"".join(map(say.encode_message, messages))
    assert say.MessageDecoder(kind).feed(stream) == messages
    slow = say.MessageDecoder(kind)
    assert list(chain.from_iterable(slow.feed(stream[at : at + 1]) for at in range(len(stream)))) == messages


@settings(deadline=None)
@given(st.lists(OBJECTS, max_size=8), st.lists(st.builds(ObjectKey, TEXT, TEXT, TEXT), max_size=4))
def test_an_update_in_parts_is_the_update(objects: list[RegistryObject], gone: list[ObjectKey]) -> None:
    parts = list(say.registry_parts(objects, gone))
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [each for part in parts for each in part.upserts] == objects
    assert [each for part in parts for each in part.deletes] == gone


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)
NAMES = st.sampled_from([each.__name__ for each in say.ToWorker.__args__ + say.ToParent.__args__]) | TEXT


@settings(max_examples=300, deadline=None)
@given(NAMES | JSON_LIKE, JSON_LIKE, st.sampled_from([say.ToWorker, say.ToParent]))
def test_whatever_is_in_a_frame_the_decoder_raises_nothing_but_a_wire_error(
    name: object, body: object, kind: object
) -> None:
    try:
        say.MessageDecoder(kind).feed(encode_frame({"type": name, "body": body}))
    except WireError:
        pass
