"""The errors, by who has to act. The command line turns these into exit codes."""

LONGEST_LINE = 2000
"""The longest text of an error: what it quotes from a file may be of any length."""


class SaeDistError(Exception):
    """The base of every error that is shown to the user as one line."""

    exit_code = 1

    def __init__(self, text: str = ""):
        super().__init__(text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}...")


class ConfigError(SaeDistError):
    """An error in the user's input: names field, value and fix. Exit code 2, nothing written."""

    exit_code = 2


class Told(ConfigError):
    """An error that rank 0 has reported: the other ranks exit without a message."""


class DataError(SaeDistError):
    """An error in the data, found in the middle of a run and named; the last checkpoint is intact."""


class NumericsError(SaeDistError):
    """A non-finite loss or gradient: names step and rank. The update was not applied."""


class TransportError(SaeDistError):
    """A rank that was silent for longer than `topology.timeout_s`, or a broken stream."""


class CheckpointError(SaeDistError):
    """A checkpoint that cannot be read or written."""


class Preempted(SaeDistError):
    """An agreed stop: the ranks saved a checkpoint, and the run can be resumed."""

    exit_code = 75
