"""What can go wrong, by who has to act. The command line turns these into exit codes."""


class SaeDistError(Exception):
    """Base of every error that is shown to the user as one line."""

    exit_code = 1


class ConfigError(SaeDistError):
    """The user's input is wrong: names field, value and fix. Exit code 2, nothing written."""

    exit_code = 2


class Told(ConfigError):
    """Rank 0 found the input wrong and has said so; the other ranks leave without a word."""


class DataError(SaeDistError):
    """Data found bad in the middle of a run: named; the last checkpoint is intact."""


class NumericsError(SaeDistError):
    """A non-finite loss or gradient: names step and rank. The update was not applied."""


class TransportError(SaeDistError):
    """A rank was silent for longer than `topology.timeout_s`, or the stream broke."""


class CheckpointError(SaeDistError):
    """A checkpoint cannot be read or written."""


class Preempted(SaeDistError):
    """The ranks agreed to stop and saved a checkpoint; the run can be resumed."""

    exit_code = 75
