"""Whatever holds with one process holds with two workers: the same tests, of everything that processes could change.

The modules that they come from run with one process; ``RINGFENCE_TEST_WORKERS=2``
runs any mesh test with two.
"""

from tests.mesh.faithful_tcp.test_bulk import test_a_reader_that_stops_stops_the_writer
from tests.mesh.faithful_tcp.test_ends_and_resets import (
    test_client_that_shuts_its_side_still_receives_the_reply,
    test_closed_port_resets_the_client_and_says_so,
    test_half_closed_connection_stays_open,
    test_reset_after_a_half_close_is_a_reset,
    test_reset_behind_bytes_is_never_a_clean_end,
    test_server_sees_the_address_and_the_end_of_a_client_that_says_nothing,
    test_server_that_shuts_its_side_still_hears_the_client,
    test_server_that_speaks_first_is_heard_without_delay,
    test_urgent_byte_stays_in_the_stream,
)
from tests.mesh.faithful_tcp.test_idle import test_nagle_is_off_and_keepalive_on
from tests.mesh.faithful_tcp.test_many import (
    pytestmark,
    test_a_thousand_connections_at_a_time,
    test_two_hundred_at_once_of_every_kind,
)

__all__ = [
    "pytestmark",
    "test_a_reader_that_stops_stops_the_writer",
    "test_a_thousand_connections_at_a_time",
    "test_client_that_shuts_its_side_still_receives_the_reply",
    "test_closed_port_resets_the_client_and_says_so",
    "test_half_closed_connection_stays_open",
    "test_nagle_is_off_and_keepalive_on",
    "test_reset_after_a_half_close_is_a_reset",
    "test_reset_behind_bytes_is_never_a_clean_end",
    "test_server_sees_the_address_and_the_end_of_a_client_that_says_nothing",
    "test_server_that_shuts_its_side_still_hears_the_client",
    "test_server_that_speaks_first_is_heard_without_delay",
    "test_two_hundred_at_once_of_every_kind",
    "test_urgent_byte_stays_in_the_stream",
]
