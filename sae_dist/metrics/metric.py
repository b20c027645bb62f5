"""One number that a run writes: its name, unit and meaning, and when it is present."""

from typing import NamedTuple

ALWAYS = "always"


class Metric(NamedTuple):
    """A number by its name. {gpu} is `<node>.<GPU of that node>`, {node} a machine, {plot} a file's name.

    Attributes:
        when: the condition under which it is present.
        reason: of an evaluation's number: the key in summary.json that says why it is missing.
        applies: of an evaluation's number: to what it applies, where that is not every dictionary.
    """

    name: str
    unit: str
    meaning: str
    when: str = ALWAYS
    reason: str = "fvu_reason"
    applies: str = ""

    @property
    def key(self) -> str:
        """The name without its group, as in summary.json and eval.json."""
        return self.name.rpartition("/")[2]
