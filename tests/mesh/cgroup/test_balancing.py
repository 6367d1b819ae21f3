"""Workloads that are cgroups are balanced at connect as pods are: the same tests."""

from tests.mesh.inpod_bpf.test_balancing import (
    pytestmark,
    stage,
    test_a_service_outside_of_the_mesh_is_reached_without_the_agent,
    test_changes_and_health_are_followed_and_no_connect_fails,
    test_what_needs_the_agent_goes_through_it,
)

__all__ = [
    "pytestmark",
    "stage",
    "test_a_service_outside_of_the_mesh_is_reached_without_the_agent",
    "test_changes_and_health_are_followed_and_no_connect_fails",
    "test_what_needs_the_agent_goes_through_it",
]
