"""The places on disk, or on the Hub, of the dictionaries of a set."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from sae_dist.config.grid import member_folders
from sae_dist.config.run import load_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG
from sae_dist.export.fetched import fetched_set
from sae_dist.export.names import DEEPEST, FILE_EACH, FILES, MOST_FOLDERS, formats_in, proposed_hook

LAYER = re.compile(r"(?<![a-z])(?:layers?|h|blocks?|resid|mlp|attn)[._-]?(\d+)(?!\d)", re.IGNORECASE)
"""The number of a layer in the name of a folder or a file."""
PATTERN = re.compile(r"[*?]")


@dataclass(frozen=True)
class Found:
    """A dictionary that was found: what `load` opens."""

    place: Path

    @property
    def hook(self) -> str | None:
        """The hook that its folder's name suggests; None: none."""
        return proposed_hook(self.place)

    def layer_for(self, hook: str) -> int | str:
        """Return the number that stands for the * of a hook.

        Raises:
            ConfigError: there is a *, and the name of the folder has no number.
        """
        if "*" not in hook:
            return ""
        # Not of what a file is linked to: the Hub's cache names that by its content.
        named = (*self.place.parent.resolve().parts, self.place.name)
        for part in reversed(named[-DEEPEST:]):
            if match := LAYER.search(part):
                return int(match[1])
        raise ConfigError(
            f"{self.place} has no number of a layer in its name, which hook={hook} needs; load it by itself"
        )


def found_at(where: str | Path | Sequence[str | Path], format: str | None = None) -> list[Found]:
    """Return the dictionaries at a place; see `sets.load_set`.

    Raises:
        ConfigError: there are none.
    """
    if not isinstance(where, str | Path):
        return [Found(Path(each).expanduser()) for each in where]
    place = Path(where).expanduser()
    if place.exists():
        places = list(_within(place, format))
    elif PATTERN.search(str(where)) and (matching := sorted(glob(str(place)))):
        places = [inside for each in matching for inside in _within(Path(each), format)]
    else:
        places = [inside for each in fetched_set(str(where)) for inside in _within(each, format)]
    if not places:
        raise ConfigError(
            f"{where} contains no dictionaries; give a grid, or a folder of runs, of exports, or of another "
            "library's files"
        )
    return [Found(each) for each in places]


def _within(place: Path, format: str | None) -> Iterator[Path]:
    """Yield what `load` opens at a place and, if that is no dictionary itself, in the folders within."""
    waiting, number = [(place, 0)], 0
    while waiting:
        folder, depth = waiting.pop(0)
        number += 1
        if number > MOST_FOLDERS:
            raise ConfigError(f"{place} has more than {MOST_FOLDERS} folders; give one nearer to the files")
        own = list(_own(folder, format))
        yield from own
        if not own and depth < DEEPEST and folder.is_dir():
            waiting += [(each, depth + 1) for each in sorted(folder.iterdir()) if each.is_dir()]


def _own(place: Path, format: str | None) -> Iterator[Path]:
    """Yield the dictionaries that a folder is, or holds as files; a file is one."""
    if place.is_file():
        yield place
        return
    layers = [file for name in FILE_EACH if format in (None, name) for file in place.glob(FILES[name][1])]
    if layers:
        yield from sorted(layers)
    elif (place / CONFIG).is_file():
        cfg = load_config(place / CONFIG)
        yield from member_folders(cfg, place)
    elif formats_in(place):
        yield place
