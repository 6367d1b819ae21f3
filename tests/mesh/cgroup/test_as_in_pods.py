"""What holds for pods holds for workloads that are cgroups: the same tests, of everything that capture could change.

The modules that they come from run with pods; ``RINGFENCE_TEST_CAPTURE=cgroup``
runs any mesh test with cgroups.  Not here is what speaks of a pod's own loopback,
or of addresses that only a node with pods of its own has.
"""

from tests.capture_contract import *  # noqa: F403
