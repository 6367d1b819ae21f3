"""What holds with nftables rules in the pods holds with BPF: the same tests, of all that capture could change.

``RINGFENCE_TEST_CAPTURE=inpod-bpf`` runs any mesh test so; not here is what looks for the rules themselves.
"""

from tests.capture_contract import *  # noqa: F403
