"""What can go wrong in the lab, said to the person who typed the command."""


class LabError(Exception):
    """A command failed; the text says what was wrong and what to do."""

    exit_code = 1


class CommandError(LabError):
    """`exec` itself failed, not the command in the pod: the code that env(1) and nohup(1) use for it."""

    exit_code = 125
