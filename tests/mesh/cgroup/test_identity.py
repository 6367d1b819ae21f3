"""Programs get the identity of their cgroup from the Workload API, and not that of a neighbour on the same network."""

from tests.mesh.test_workload_api import (
    pytestmark,
    test_a_process_outside_of_any_pod_is_refused_and_the_log_says_so,
    test_a_program_gets_the_identity_of_its_pod_and_another_pod_gets_another,
)

__all__ = [
    "pytestmark",
    "test_a_process_outside_of_any_pod_is_refused_and_the_log_says_so",
    "test_a_program_gets_the_identity_of_its_pod_and_another_pod_gets_another",
]
