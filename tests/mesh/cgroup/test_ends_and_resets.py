"""Half-closes and resets are carried for workloads that are cgroups as for pods."""

from tests.mesh.faithful_tcp.test_ends_and_resets import (
    pytestmark,
    test_client_that_shuts_its_side_still_receives_the_reply,
    test_closed_port_resets_the_client_and_says_so,
    test_half_closed_connection_stays_open,
    test_reset_after_a_half_close_is_a_reset,
    test_server_that_shuts_its_side_still_hears_the_client,
    test_server_that_speaks_first_is_heard_without_delay,
)

__all__ = [
    "pytestmark",
    "test_client_that_shuts_its_side_still_receives_the_reply",
    "test_closed_port_resets_the_client_and_says_so",
    "test_half_closed_connection_stays_open",
    "test_reset_after_a_half_close_is_a_reset",
    "test_server_that_shuts_its_side_still_hears_the_client",
    "test_server_that_speaks_first_is_heard_without_delay",
]
