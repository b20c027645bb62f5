"""Files of tensors."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, complete or absent, that whoever may read other new files may read.

    The library's own, since 0.6, are their owner's alone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch()
    mode = temporary.stat().st_mode
    save_file(dict(tensors), temporary, metadata)
    temporary.chmod(mode)
    os.replace(temporary, path)
