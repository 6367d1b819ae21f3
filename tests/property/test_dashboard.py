"""Whatever agents say, the dashboard makes a picture of it or says that it can not."""

import json

from hypothesis import given
from hypothesis import strategies as st

from node_agent.dashboard.picture import Picture
from node_agent.dashboard.rates import Rates
from node_agent.dashboard.sights import SightError, Sights

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["a/b", "a/b-0", "a/c", "a", "", "<img src=x onerror=alert(1)>", "\u202e/x", "a/b:80"])


def rows(*names: str) -> st.SearchStrategy[object]:
    """Objects with these members, of which some are what they should be."""
    return st.lists(st.dictionaries(st.sampled_from(names), NAMES | JSON, max_size=len(names)) | JSON, max_size=4)


EDGES = rows("reporter", "source", "destination", "service", "security", "opened", "closed", "flags", "sent_bytes")
RECORDS = rows("id", "time", "direction", "source_workload", "source_identity", "service", "response_flags")
LIVE = rows("id", "source", "service", "endpoint", "original_destination", "age_s", "direction", "source_identity")
SIGHTS = st.fixed_dictionaries(
    {},
    optional={
        "at": JSON,
        "status": JSON,
        "workloads": rows("name", "namespace", "state", "error"),
        "certs": rows("identity", "not_after"),
        "edges": EDGES,
        "connections": LIVE,
        "recent": RECORDS,
        "unhealthy": rows("service", "address", "health", "why"),
    },
)
MESHES = st.fixed_dictionaries(
    {"node": st.text(max_size=4)},
    optional={
        "services": rows("name", "namespace", "kind"),
        "endpoints": rows("service", "workload", "address", "ready", "identity"),
        "workloads": rows("name", "namespace", "owner", "node", "addresses", "enrolled", "identity"),
        "agents": st.lists(
            st.fixed_dictionaries(
                {"node": NAMES, "error": st.none() | st.text(max_size=4), "sight": SIGHTS.map(json.dumps) | JSON}
            )
            | JSON,
            max_size=3,
        ),
    },
)


@given(st.lists(MESHES | JSON, min_size=1, max_size=3))
def test_every_answer_is_a_picture_or_an_error(documents: list[object]) -> None:
    sights, rates = Sights(), Rates()
    for now, document in enumerate(documents):
        try:
            mesh = sights.take(document, now=float(now))
        except SightError:
            continue
        picture = Picture(mesh, rates)
        overview = picture.overview()
        known = {each["id"] for each in overview["nodes"]}
        assert all({edge["source"], edge["target"]} <= known for edge in overview["edges"])
        for node in overview["nodes"]:
            json.dumps(picture.node(node["id"]))
        for edge in overview["edges"]:
            json.dumps(picture.edge(edge["id"]), allow_nan=False)
        json.dumps(overview)
