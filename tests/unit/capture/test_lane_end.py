"""What the numbers of a connection on the lane mean."""

import errno

import pytest

from node_agent.capture.lane_end import LaneFate, count, fate

_OPEN, _SENT, _BOTH = (True, False, False), (True, True, False), (True, True, True)


@pytest.mark.parametrize(
    ("acked", "received", "seen", "told"),
    [
        (0, 0, (False, False, False), (0, 0)),  # refused
        (1, 0, _OPEN, (0, 0)),  # reset before anything was said
        (2, 1, _BOTH, (0, 0)),  # opened and closed
        (1002, 501, _BOTH, (1000, 500)),
        (1001, 501, (True, False, True), (1000, 500)),  # our FIN was never acknowledged
        (1002, 500, _SENT, (1000, 500)),  # theirs never came
    ],
)
def test_syn_and_fin_are_no_bytes_of_the_programs(
    acked: int, received: int, seen: tuple[bool, bool, bool], told: tuple[int, int]
) -> None:
    is_established, is_fin_acked, has_fin_come = seen
    found = count(
        acked_bytes=acked,
        received_bytes=received,
        is_established=is_established,
        is_fin_acked=is_fin_acked,
        has_fin_come=has_fin_come,
    )
    assert found == told


@pytest.mark.parametrize(
    ("error", "established", "fin_acked", "grant_gone", "told"),
    [
        (0, True, True, False, LaneFate.COMPLETE),
        (0, True, False, False, LaneFate.CLIENT_RESET),
        (0, False, False, False, LaneFate.CLIENT_RESET),  # it gave up before there was an answer
        (errno.ECONNRESET, True, False, False, LaneFate.SERVER_RESET),
        (errno.EPIPE, True, True, False, LaneFate.SERVER_RESET),
        (errno.ECONNREFUSED, False, False, False, LaneFate.REFUSED),
        (errno.ECONNREFUSED, False, False, True, LaneFate.GRANT_GONE),
        (errno.ETIMEDOUT, False, False, False, LaneFate.NO_ANSWER),
        (errno.ETIMEDOUT, True, False, False, LaneFate.NO_ANSWER),
        (errno.ECONNABORTED, True, False, False, LaneFate.CUT),
        (errno.ECONNABORTED, False, False, True, LaneFate.CUT),
    ],
)
def test_how_it_ended_is_told_by_the_error_of_the_socket(
    error: int, established: bool, fin_acked: bool, grant_gone: bool, told: LaneFate
) -> None:
    assert fate(error=error, is_established=established, is_fin_acked=fin_acked, is_grant_gone=grant_gone) is told
