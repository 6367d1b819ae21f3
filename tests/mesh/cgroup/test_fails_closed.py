"""Whatever is down, as for pods: an enrolled workload's connections are encrypted and identified, or they fail."""

from tests.mesh.test_fail_closed import (
    pytestmark,
    test_without_its_agent_a_pod_connects_to_nobody_and_nobody_to_it,
)

__all__ = [
    "pytestmark",
    "test_without_its_agent_a_pod_connects_to_nobody_and_nobody_to_it",
]
