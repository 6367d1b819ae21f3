"""A pod gets the rules that its kernel can have, or an error that says why it has none."""

import pytest

from node_agent.capture import plumbing, rules

_REFUSED = "Error: Could not process rule: No such file or directory\n  socket mark"


class _Kernel:
    """What takes rules, but for those with a word that it does not know."""

    def __init__(self, *unknown: str) -> None:
        self._unknown = unknown
        self.rules = ""

    def nft(self, text: str) -> tuple[int, str]:
        if any(word in text for word in self._unknown):
            return 1, _REFUSED
        self.rules = text
        return 0, ""


@pytest.mark.parametrize("unknown", [(), ("socket mark",)])
def test_without_nft_socket_the_tunnels_that_the_agent_dials_are_tracked_both_ways(
    monkeypatch: pytest.MonkeyPatch, unknown: tuple[str, ...]
) -> None:
    kernel = _Kernel(*unknown)
    monkeypatch.setattr(plumbing, "_nft", kernel.nft)
    plumbing._install_rules()
    assert kernel.rules == rules.install(knows_sockets=not unknown)
    assert ("tcp dport 15008 notrack return" in kernel.rules) is ("socket mark" in kernel.rules) is (not unknown)


def test_what_a_kernel_can_not_do_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plumbing, "_nft", _Kernel("notrack").nft)
    with pytest.raises(plumbing.PlumbingError, match="nftables refused the rules: Error: Could not process rule"):
        plumbing._install_rules()
