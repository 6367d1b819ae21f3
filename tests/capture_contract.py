"""The tests of everything that another way to capture could change, to be run with each: with ``import *``.

They run in the order of these imports (with ``__all__`` it would be that of the alphabet): first those that share
a cast, then those that each begin with an empty lab.
"""

# ruff: noqa: F401

from tests.mesh.test_modes import (
    cast,
    company,
    lab,
    test_enrolled_to_a_service_of_pods_that_are_not_enrolled,
    test_enrolled_to_not_enrolled_passes_in_plaintext_and_says_so,
    test_not_enrolled_to_enrolled_is_accepted_by_default,
    test_not_enrolled_to_enrolled_over_a_service,
    test_strict_on_one_port_leaves_the_others_open,
    test_strict_refuses_the_nodes_too,
    test_the_listeners_of_an_agent_are_no_destination,
)
from tests.mesh.test_paths import (
    pytestmark,
    test_counters_move_with_the_connection,
    test_multipath_tcp_is_no_way_around,
    test_pod_address_carries_both_identities,
    test_service_address_spreads_over_both_nodes,
    test_service_name_reaches_the_service,
)
from tests.mesh.test_programs import (
    directory,
    test_curl_http2_with_prior_knowledge,
    test_curl_keeps_one_connection_for_many_requests,
    web,
)
