"""Whatever is down, as with rules: a pod's connections are encrypted and identified, or they fail."""

from tests.mesh.test_fail_closed import (
    pytestmark,
    test_a_transfer_that_loses_an_agent_is_reset_never_ended,
    test_without_its_agent_a_pod_connects_to_nobody_and_nobody_to_it,
)
from tests.mesh.test_pods_come_and_go import (
    test_a_deleted_pod_leaves_nothing_behind,
    test_a_new_pod_with_an_old_address_is_reached_as_itself,
)

__all__ = [
    "pytestmark",
    "test_a_deleted_pod_leaves_nothing_behind",
    "test_a_new_pod_with_an_old_address_is_reached_as_itself",
    "test_a_transfer_that_loses_an_agent_is_reset_never_ended",
    "test_without_its_agent_a_pod_connects_to_nobody_and_nobody_to_it",
]
