"""The keys that `sae-dist atlas RUN` takes: its own, and those of the run that say how it is computed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from sae_dist.config.counts import parse_count
from sae_dist.config.plain import fitting, read_yaml
from sae_dist.config.run import Single, schema
from sae_dist.config.sections import ActivationsConfig, TopologyConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import read_bounded, reading

ASKED = "asked.yaml"
"""The file in an atlas's folder with what was asked for, from before the first rank starts."""
HELD_OUT, TRAINING = "held_out", "training"
SHARDS = ".tar"
CAN_CHANGE = (
    "topology.producers",
    "topology.shard",
    "topology.dp",
    "topology.in_flight",
    "topology.timeout_s",
    "device",
)
"""Keys of the run's config that may be other than in training; none of them changes the atlas."""


@dataclass(frozen=True)
class AtlasConfig:
    """The extent of an atlas."""

    tokens: Any = "10M"  # activations to read, in whole chunks, if there are so many
    text: str = HELD_OUT  # held_out: of the run | training | a file or folder of text | tar files of tokens
    lanes: int = 24  # streams of documents, dealt out to producers and consumers
    top: int = 20  # examples of the greatest codes of each latent
    bins: int = 5  # halvings of its greatest code, each with examples of its own
    each: int = 5  # examples of a bin
    few: int = 10  # a latent that fires less often is called too rare
    near: bool | None = None  # nearest decoder rows; null: where that takes less than an hour
    lens: int = 1  # chunks of text on which the mean Jacobian to the logits is fitted; 0: without

    @property
    def count(self) -> int:
        """The number of activations."""
        found = parse_count(self.tokens, "atlas.tokens")
        assert found is not None, "null is refused"
        return found


SMALLEST = {"lanes": 1, "top": 1, "bins": 1, "each": 0, "few": 0, "lens": 0}
LARGEST = {"lanes": 2**16, "top": 1000, "bins": 32, "each": 1000, "few": 2**31, "lens": 2**16}


def keys() -> dict[str, Any]:
    """Return the type of each key that the command takes."""
    hints = get_type_hints(AtlasConfig)
    own = {f"atlas.{each.name}": hints[each.name] for each in fields(AtlasConfig)}
    return own | {key: schema()[key] for key in CAN_CHANGE}


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of `keys` that have the right types and are within their bounds.

    Raises:
        ConfigError: a key is unknown, or a value is wrong.
    """
    kinds = keys()
    found = {}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(
                f"{key}={value}: a run that was trained is read as it is; only {', '.join(kinds)} may change"
            )
        try:
            found[key] = fitting(value, kinds[key], key)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        name = key.removeprefix("atlas.")
        if key.startswith("atlas.") and name in SMALLEST:
            low, high = SMALLEST[name], LARGEST[name]
            if not low <= found[key] <= high:
                raise ConfigError(f"{key}={found[key]} must be at least {low} and at most {high}")
    count = atlas_of(found).count
    if count < 1:
        raise ConfigError(f"atlas.tokens={count} reads nothing; give more, such as atlas.tokens=2M")
    return found


def atlas_of(values: Mapping[str, Any]) -> AtlasConfig:
    """Return the atlas that values of `keys` ask for."""
    own = {key.removeprefix("atlas."): value for key, value in values.items() if key.startswith("atlas.")}
    return AtlasConfig(**own)


def read_asked(folder: Path) -> dict[str, Any]:
    """Read what an atlas in a folder was asked to be.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = folder / ASKED
    with reading(path, "is not what an atlas was asked to be ({reason}); remove the folder and begin again"):
        found = read_yaml(read_bounded(path).decode("utf-8"))
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no keys; remove the folder and begin again")
    return checked(found)


def written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every key of an atlas with its value, and the others that were given."""
    return {f"atlas.{key}": value for key, value in asdict(atlas_of(values)).items()} | dict(values)


def for_atlas(run: Single, values: Mapping[str, Any]) -> Single:
    """Return the config of a run as its atlas is computed: its model, text and topology, for one pass."""
    given = {key: value for key, value in values.items() if not key.startswith("atlas.")}
    topology = {key.split(".")[1]: value for key, value in given.items() if key.startswith("topology.")}
    atlas = atlas_of(values)
    tokens = replace(run.tokens, epochs=1)
    if atlas.text not in (HELD_OUT, TRAINING):
        kind = "webdataset" if SHARDS in Path(atlas.text).suffixes else "text"
        tokens = replace(tokens, kind=kind, path=atlas.text)
    llm = run.llm if topology.get("producers") else replace(run.llm, shard="none", shard_size=1)
    return replace(
        run,
        tokens=tokens,
        llm=replace(llm, compile=False),
        topology=TopologyConfig(**topology),
        activations=ActivationsConfig(kind="llm"),
        shuffle=replace(run.shuffle, lanes=atlas.lanes),
        device=given.get("device", run.device),
        target_hook=None,
    )
