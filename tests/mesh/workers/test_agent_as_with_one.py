"""Draining, pods that come and go, revocation: the tests of one process, with two workers."""

from tests.mesh.test_drain import (
    pytestmark,
    test_a_busy_connection_is_cut_with_the_reason_too,
    test_a_service_loses_nobody_while_one_of_its_agents_is_restarted,
    test_connections_that_end_within_the_grace_period_end_in_order,
    test_running_connections_get_the_grace_period_and_then_are_cut_with_the_reason,
    test_who_drains_keeps_nobody_waiting_who_has_a_tunnel_to_it,
)
from tests.mesh.test_paths import (
    test_counters_move_with_the_connection,
    test_service_address_spreads_over_both_nodes,
)
from tests.mesh.test_pods_come_and_go import (
    test_a_deleted_pod_leaves_nothing_behind,
    test_a_new_pod_is_served_within_a_second_of_its_manifest,
    test_a_new_pod_with_an_old_address_is_reached_as_itself,
    test_a_pod_that_leaves_the_mesh_talks_plainly_and_may_come_back,
    test_deleting_a_pod_cuts_its_connections_and_both_ends_know_why,
)
from tests.mesh.test_revocation import (
    test_a_revoked_certificate_is_replaced_and_what_it_carried_is_cut,
    test_a_revoked_identity_has_no_connections_until_it_is_undone,
)
from tests.mesh.test_secrets import test_no_secret_is_in_a_log_an_argument_or_an_environment

__all__ = [
    "pytestmark",
    "test_a_busy_connection_is_cut_with_the_reason_too",
    "test_a_deleted_pod_leaves_nothing_behind",
    "test_a_new_pod_is_served_within_a_second_of_its_manifest",
    "test_a_new_pod_with_an_old_address_is_reached_as_itself",
    "test_a_pod_that_leaves_the_mesh_talks_plainly_and_may_come_back",
    "test_a_revoked_certificate_is_replaced_and_what_it_carried_is_cut",
    "test_a_revoked_identity_has_no_connections_until_it_is_undone",
    "test_a_service_loses_nobody_while_one_of_its_agents_is_restarted",
    "test_connections_that_end_within_the_grace_period_end_in_order",
    "test_counters_move_with_the_connection",
    "test_deleting_a_pod_cuts_its_connections_and_both_ends_know_why",
    "test_no_secret_is_in_a_log_an_argument_or_an_environment",
    "test_running_connections_get_the_grace_period_and_then_are_cut_with_the_reason",
    "test_service_address_spreads_over_both_nodes",
    "test_who_drains_keeps_nobody_waiting_who_has_a_tunnel_to_it",
]
