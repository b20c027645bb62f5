"""ZeRO-3 inference: every parameter is split over the ranks of a group, and whole only while its layer runs.

DeepSpeed (Rajbhandari et al. 2020, arXiv:1910.02054) partitions and gathers. When to gather is decided here:
DeepSpeed's own schedule compares its record over the whole world, in which most ranks hold no LLM, and
transformers' loader assumes that the group is the world.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_dist.core.errors import ConfigError
from sae_dist.distributed.collectives import Axis
from sae_dist.llm.architecture import text_part
from sae_dist.llm.cut import cut_class, shorter_config


class Partitioned:
    """The schedule of a ZeRO-3 model: gather each block before its forward, partition it again afterwards.

    The next block is gathered while one runs. A block is a layer, or a module outside of the layers with
    parameters of its own.
    """

    def __init__(self, model: nn.Module, team: Axis):
        self.team = team
        modules = list(blocks_of(model))
        self.blocks: list[list[Any]] = [list(module.parameters()) for module in modules]
        self.under_way: dict[int, Any] = {}
        self.whole: set[int] = set()
        for number, module in enumerate(modules):
            module.register_forward_pre_hook(partial(self._gather, number))
            module.register_forward_hook(partial(self._let_go, number))

    def most(self, forwards: int) -> int:
        """Return the largest number of forwards that any rank of the group has in this round."""
        return int(self.team.max(torch.tensor([forwards])))

    def release(self) -> None:
        """Partition every block again, after a forward that ended normally or was cut short."""
        for number in sorted(self.under_way):
            self._finish(number)
        for number in sorted(self.whole):
            self._let_go(number)

    def _gather(self, number: int, *_: Any) -> None:
        if number not in self.whole:
            self._begin(number)
            self._finish(number)
        if number + 1 < len(self.blocks):
            self._begin(number + 1)

    def _begin(self, number: int) -> None:
        if number not in self.under_way and number not in self.whole:
            parameters = self.blocks[number]
            self.under_way[number] = parameters[0].all_gather_coalesced(parameters)

    def _finish(self, number: int) -> None:
        self.under_way.pop(number).wait()
        self.whole.add(number)

    def _let_go(self, number: int, *_: Any) -> None:
        if number in self.whole:
            self.blocks[number][0].partition(self.blocks[number])
            self.whole.discard(number)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are gathered as one, in the order of the model's definition."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, nn.ModuleList):
            for layer in module:
                if any(True for _ in layer.parameters()):
                    yield layer
            inside = (*inside, name + ".")
        elif any(True for _ in module.parameters(recurse=False)):
            yield module


def load_partitioned(
    kind: Any,
    config: Any,
    hooks: tuple[str, ...],
    path: str,
    *,
    team: Axis,
    device: torch.device,
    offload: bool,
    **how: Any,
) -> tuple[nn.Module, set[str]]:
    """Make a model of `config` whose parameters are partitioned from the moment they are allocated.

    Values are read by the group's first rank, one tensor at a time, from safetensors files.

    Args:
        kind: the base model's class.
        hooks: layers after theirs are left out.
        offload: keep a rank's part of the parameters in host memory.
        how: dtype, attn_implementation.

    Returns:
        The model, and the names of parameters that the files do not have.

    Raises:
        ConfigError: there are no safetensors files.
    """
    files = _checkpoint(path)
    # DeepSpeed reads both variables; only torchrun sets the first.
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from transformers.initialization import no_init_weights

    if not deepspeed.comm.is_initialized():
        backend = "gloo" if device.type == "cpu" else "nccl"
        # Nothing here calls this all-reduce; DeepSpeed would compile it first, for minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    splitting = deepspeed.zero.Init(
        data_parallel_group=team.group,
        mem_efficient_linear=False,  # else torch.nn.functional.linear is replaced for good
        remote_device="cpu" if offload else None,
        pin_memory=offload and device.type == "cuda",
        dtype=how["dtype"],
        tensor_overrides=[],  # else buffers such as rotary frequencies are cast too
    )
    # What is cut after it was allocated is paid for in memory; a shorter config allocates less.
    short = shorter_config(kind, config, hooks, **how)
    with no_init_weights(), splitting:
        model = cut_class(kind, hooks)._from_config(short, **how)
    _restore(model, short, config)
    missing = _fill(model, files, team)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model, missing


def _restore(model: nn.Module, short: Any, whole: Any) -> None:
    """Give every part of a model the numbers of the whole model's config, which forwards may read."""
    for part, full in ((short, whole), (text_part(short), text_part(whole))):
        if part is not full:
            held = [each.config for each in model.modules() if getattr(each, "config", None) is not None]
            same = [each for each in held if type(each) is type(part)]
            for each in (part, *same):
                each.num_hidden_layers = full.num_hidden_layers
                for key, value in vars(full).items():
                    if isinstance(value, list):
                        setattr(each, key, value)


def _fill(model: nn.Module, files: dict[str, str], team: Axis) -> set[str]:
    """Read every parameter and buffer that the files have; return the names of parameters they lack."""
    import deepspeed

    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    missing = set(parameters)
    for name, value in _values(model, files):
        if name in buffers:
            buffers[name].copy_(value())
        if name not in parameters:
            continue
        missing.discard(name)
        with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0):
            if team.rank == 0:
                with torch.no_grad():
                    parameters[name].copy_(value())
    return missing


def _values(model: Any, files: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield (name in the model, a function that reads the value), in the same order on every rank."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    known = dict.fromkeys(model.state_dict(), True)
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    merged: dict[str, Any] = {}
    for key in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(
            key, renamings, converters, base_model_prefix=model.base_model_prefix, meta_state_dict=known
        )
        if name not in known:
            continue
        read = partial(_read, files[key], key)
        if pattern is None:
            yield name, read
            continue
        # Several tensors of the file make one of the model, such as the experts of a layer.
        like = by_pattern[pattern]
        fresh = WeightConverter(like.source_patterns, like.target_patterns, operations=like.operations)
        merged.setdefault(name, fresh).add_tensor(name, key, pattern, read)
    for name, converter in merged.items():
        made = converter.convert(name, model=model, config=model.config)
        for target, value in made.items():
            yield target, partial(_first, value)


def _first(value: Any) -> Tensor:
    return value[0] if isinstance(value, list) else value


def _read(file: str, key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(key)


def _checkpoint(path: str) -> dict[str, str]:
    """List {key: file} of a model's folder, or of a Hub model, which is downloaded.

    Raises:
        ConfigError: there are no safetensors files.
    """
    from safetensors import safe_open

    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))
    found: dict[str, str] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), str(file))
    if not found:
        raise ConfigError(
            f"llm.shard=zero3 reads model*.safetensors, and {path} has none; save it with save_pretrained"
        )
    return found
