"""Types that travel, types that do not, and data that is not of its type."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from ca.errors import WireError
from ca.manifests import ManifestObject, Service
from node_agent.errors import CloseReason
from node_agent.workers import codec
from tests.manifest_builder import service


class Point(NamedTuple):
    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    name: str
    at: Point | None = None
    path: Path = Path("/")
    reasons: tuple[CloseReason, ...] = ()
    by_port: Mapping[int, str | None] | None = None


def test_a_value_survives_the_way_there_and_back() -> None:
    thing = Thing(
        name="x", at=Point(1, 2), path=Path("/etc"), reasons=(CloseReason.OK,), by_port={8080: "STRICT", 1: None}
    )
    assert codec.decode(Thing, codec.encode(Thing, thing)) == thing
    assert codec.decode(Thing, codec.encode(Thing, Thing(name=""))) == Thing(name="")


def test_a_member_of_a_union_knows_its_class() -> None:
    data = codec.encode(ManifestObject, service())
    assert data[0] == "Service"
    assert isinstance(codec.decode_any(ManifestObject, data), Service)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        ["x"],
        ["x", None, "/", [], None, 1],
        [1, None, "/", [], None],
        [True, None, "/", [], None],
        ["x", [1], "/", [], None],
        ["x", [1, "2"], "/", [], None],
        ["x", None, 7, [], None],
        ["x", None, "/", ["no such reason"], None],
        ["x", None, "/", {}, None],
        ["x", None, "/", [], [1]],
        ["x", None, "/", [], [1, "a", 1, "b"]],
        ["x", None, "/", [], ["1", "a"]],
    ],
)
def test_what_is_not_of_the_type_is_refused(data: object) -> None:
    with pytest.raises(WireError):
        codec.decode(Thing, data)


@pytest.mark.parametrize("data", [None, [], ["Service"], ["Service", []], ["Nothing", []], [1, []], ["Service", [], 1]])
def test_what_is_no_member_of_the_union_is_refused(data: object) -> None:
    with pytest.raises(WireError):
        codec.decode_any(ManifestObject, data)


def test_values_are_checked_by_their_own_constructors() -> None:
    @dataclass(frozen=True)
    class Positive:
        value: int

        def __post_init__(self) -> None:
            if self.value < 0:
                raise ValueError("negative")

    assert codec.decode(Positive, [1]) == Positive(1)
    with pytest.raises(WireError, match="negative"):
        codec.decode(Positive, [-1])


@pytest.mark.parametrize("kind", [object, tuple[int, str], list[int], set[int]])
def test_a_type_that_does_not_travel_is_found_out_when_the_code_is_written(kind: object) -> None:
    with pytest.raises(TypeError, match="travel"):
        codec.encode(kind, None)
