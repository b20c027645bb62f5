"""The progress of the pass over the text of an atlas: windows that are done, and where each lane goes on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae_dist.atlas.schema import WORK
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json, write_json
from sae_dist.core.types import Position

DONE = "done.json"


@dataclass(frozen=True)
class Done:
    """The windows of a pass that all ranks have written.

    Attributes:
        windows: their number.
        starts: by lane, where the last chunk that was read begins; lanes without one are not in it.
        over: the text has ended, or what was asked for is read.
    """

    windows: int = 0
    starts: dict[int, Position] = field(default_factory=dict)
    over: bool = False

    @classmethod
    def of(cls, folder: Path) -> "Done":
        """Read what was done in an atlas's folder.

        Raises:
            ConfigError: the file is damaged.
        """
        path = folder / WORK / DONE
        found = read_json(path)
        if found is None:
            return cls()
        windows, starts, over = (found.get(key) for key in ("windows", "starts", "over"))
        if (
            type(windows) is not int
            or windows < 0
            or not isinstance(starts, dict)
            or not isinstance(over, bool)
        ):
            raise ConfigError(f"{path} is damaged; remove {folder} and begin again")
        if not all(lane.isdecimal() and _is_position(each) for lane, each in starts.items()):
            raise ConfigError(f"{path} is damaged; remove {folder} and begin again")
        return cls(windows, {int(lane): each for lane, each in starts.items()}, over)

    def write(self, folder: Path) -> None:
        """Write it, once every rank has written its part of these windows."""
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        write_json(folder / WORK / DONE, asdict(self))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _is_position(value: Any) -> bool:
    names = ("chunk", "epoch", "document", "offset")
    return isinstance(value, dict) and set(value) == set(names) and all(map(_is_count, value.values()))
