"""What can go wrong between us and bpf(2); each text says what to do."""


class BpfError(Exception):
    """The kernel side can not be loaded, opened or changed; the text is for the operator."""


class UnsupportedError(BpfError):
    """This kernel can not do it: a feature is off, and nothing is broken."""


class VerifierRefusal(BpfError):
    """The kernel's verifier did not accept a program; ``log`` is what it said, whole."""

    def __init__(self, text: str, *, log: str) -> None:
        super().__init__(text)
        self.log = log
