"""The keys of configs that other programs wrote, and the type that each must have to be read.

All are checked as a file is read, before anything is made of them: what is behind is of the type that is
expected. Null stands for a key that is not there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError

LONGEST_SHOWN = 60
MOST = 1 << 48
"""More than any dimension of a tensor that fits on a disk."""


@dataclass(frozen=True)
class Type:
    """The type of a key's value.

    Attributes:
        words: what the value must be, for the message.
        holds: returns whether a value is of it.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    # Some trainers write k as 32.0.
    whole |= isinstance(value, float) and math.isfinite(value) and value == int(value)
    return whole and 0 < value <= MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_growing(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(map(_is_count, value)):
        return False
    return all(one <= other for one, other in zip(value, value[1:], strict=False))


COUNT = Type("a whole number above 0", _is_count)
NUMBER = Type("a number above 0", lambda value: _is_number(value) and value > 0)
FLAG = Type("true or false", lambda value: isinstance(value, bool))
TEXT = Type("text", lambda value: isinstance(value, str))
OBJECT = Type("an object of keys", lambda value: isinstance(value, dict))
SIZES = Type("a list of whole numbers that do not shrink", _is_growing)
FLAG_OR_WORD = Type("true, false or text", lambda value: isinstance(value, bool | str))
SIZE = Type("a whole number, 0 or more", lambda value: value is not True and (value == 0 or _is_count(value)))

ORIGIN = {
    "model_name": TEXT,
    "model_class_name": TEXT,
    "model_from_pretrained_kwargs": OBJECT,
    "hook_name": TEXT,
    "hook_name_out": TEXT,
    "hf_hook_name": TEXT,
    "hf_hook_name_out": TEXT,
    "context_size": COUNT,
    "prepend_bos": FLAG,
    "dataset_path": TEXT,
    "neuronpedia_id": TEXT,
}
"""Where a dictionary comes from, in SAELens' words."""
METADATA = ORIGIN | {
    "training_architecture": TEXT,
    "training_architecture_details": OBJECT,
    "training_k": COUNT,
    "matryoshka_prefixes": SIZES,
}
SAELENS = {
    "architecture": TEXT,
    "d_in": COUNT,
    "d_sae": COUNT,
    "d_out": COUNT,
    "k": NUMBER,
    "apply_b_dec_to_input": FLAG,
    "normalize_activations": FLAG_OR_WORD,
    "rescale_acts_by_decoder_norm": FLAG,
    "matryoshka_widths": SIZES,
    "metadata": METADATA,
}
BEFORE_SAELENS_6 = ORIGIN | {
    "activation_fn": TEXT,
    "activation_fn_str": TEXT,
    "activation_fn_kwargs": {"k": COUNT},
    "finetuning_scaling_factor": FLAG,
    "hook_point": TEXT,
}
"""Keys of the top level where it has no metadata."""
SPARSIFY = {
    "activation": TEXT,
    "expansion_factor": COUNT,
    "num_latents": SIZE,
    "k": COUNT,
    "d_in": COUNT,
    "signed": FLAG,
    "skip_connection": FLAG,
    "transcode": FLAG,
    "metadata": METADATA,
}
DICTIONARY_LEARNING = {
    "trainer": {
        "dict_class": TEXT,
        "activation_dim": COUNT,
        "dict_size": COUNT,
        "k": COUNT,
        "layer": SIZE,
        "lm_name": TEXT,
        "submodule_name": TEXT,
    },
    "buffer": {"ctx_len": COUNT},
    "metadata": METADATA,
}
GEMMA_SCOPE = {
    "architecture": TEXT,
    "model_name": TEXT,
    "hf_hook_point_in": TEXT,
    "hf_hook_point_out": TEXT,
    "affine_connection": FLAG,
}
CIRCUIT_TRACER = {
    "model_name": TEXT,
    "model_kind": TEXT,
    "feature_input_hook": TEXT,
    "feature_output_hook": TEXT,
    "activation": TEXT,
    "k": COUNT,
    "metadata": METADATA,
    "layers": OBJECT,
}
Table = Mapping[str, Any]
"""Key -> its `Type`, or the table of an object's own keys."""


def checked(path: Path, config: Mapping[str, Any], table: Table, within: str = "") -> dict[str, Any]:
    """Return a config without the keys that are null, its counts as integers.

    Args:
        table: the keys that will be read; others are passed on as they are.
        within: the path of keys down to `config`, for messages.

    Raises:
        ConfigError: a key in the table has another type.
    """
    found = dict(config)
    for key, wanted in table.items():
        value = found.get(key)
        if value is None:
            found.pop(key, None)
            continue
        nested = not isinstance(wanted, Type)
        kind = OBJECT if nested else wanted
        if not kind.holds(value):
            shown = repr(value)
            shown = shown if len(shown) <= LONGEST_SHOWN else shown[:LONGEST_SHOWN] + "..."
            raise ConfigError(f"{path}: {within}{key}={shown} must be {kind.words}")
        if nested:
            found[key] = checked(path, value, wanted, f"{within}{key}.")
        elif kind in (COUNT, SIZE):
            found[key] = int(value)
        elif kind is SIZES:
            found[key] = [int(each) for each in value]
    return found
