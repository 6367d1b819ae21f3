"""maps.h is the only place where a structure is written down; Python reads it and understands nothing else."""

import pytest

from bpf.abi import abi, parse
from bpf.plan import FEATURES, HOOKS, MAP_HOOKS
from node_agent.capture import rules


def test_members_have_the_offsets_that_c_gives_them() -> None:
    found = parse("struct pair { __u32 a; __u16 b[2]; __u64 c; __u8 name[8]; };").structs["pair"]

    assert {name: each.offset for name, each in found.members.items()} == {"a": 0, "b": 4, "c": 8, "name": 16}
    assert found.size_bytes == 24
    raw = found.pack(a=1, b=(2, 3), c=4, name=b"xy")
    assert raw == b"\x01\0\0\0\x02\0\x03\0\x04\0\0\0\0\0\0\0xy\0\0\0\0\0\0"
    assert (found.number(raw, "a"), found.number(raw, "b", 1), found.number(raw, "c")) == (1, 3, 4)
    assert found.bytes_of(raw, "name") == b"xy\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("struct gap { __u8 a; __u32 b; };", "pad before b"),
        ("struct tail { __u64 a; __u32 b; };", "pad at the end"),
        ("struct other { int a; };", "not understood: 'int a'"),
        ("struct pointer { __u8 *a; };", "not understood"),
        ("union either { __u8 a; };", "not understood: 'union either"),
        ("typedef unsigned int word;", "not understood: 'typedef"),
    ],
)
def test_what_could_be_misread_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="maps.h") as refused:
        parse(text)

    assert complaint in str(refused.value)


def test_comments_and_spaces_do_not_make_another_abi() -> None:
    one = parse("struct a { __u32 b; };")

    assert parse("/* said */\nstruct a {\n    __u32 b; /* more */\n};\n").fingerprint == one.fingerprint
    assert parse("struct a { __u32 c; };").fingerprint != one.fingerprint
    assert parse("#define N 2\nstruct a { __u32 b; };").fingerprint != one.fingerprint


def test_the_agents_mark_is_one_number() -> None:
    assert abi().constants["AGENT_MARK"] == rules.AGENT_MARK
    assert abi().constants["MARK_MASK"] == rules.MARK_MASK


def test_every_row_of_the_plan_names_things_that_exist() -> None:
    hooks = {each.name for each in (*HOOKS, *MAP_HOOKS)}
    for feature in FEATURES:
        assert {row.hook for row in feature.programs} <= hooks
        for row in feature.maps:
            assert {row.key, row.value} - {None} <= abi().structs.keys()
        assert len(feature.name) < abi().structs["feature_state"].members["name"].size_bytes
