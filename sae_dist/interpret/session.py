"""Hooks on a model for the time of a `with` block: the one place where a dictionary touches a model.

Letters: as core.types.
"""

import inspect
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.forward import Forward, ForwardReader
from sae_dist.interpret.model import as_model, check_same
from sae_dist.llm.hooks import attach as hook_on
from sae_dist.llm.hooks import per_token

S = TypeVar("S", bound="Session")


class Session:
    """A dictionary on a model. A subclass says what becomes of the activations, in `act`.

    The model is changed within the `with` block only; leaving it, also by an exception, removes every hook.
    """

    def __init__(self, dictionary: Dictionary, lm: Any, force: bool):
        self.lm = as_model(lm)
        check_same(dictionary, self.lm, force)
        self.dictionary = dictionary
        given = {"hook": dictionary.hook}
        if dictionary.is_transcoder:
            given["target_hook"] = dictionary.target_hook
        for key, name in given.items():
            if name is None:
                raise ConfigError(
                    f"{dictionary.place.folder} does not say its {key}; make a run of it, which says it: "
                    f"sae-dist import {dictionary.place.folder} name=NAME {key}=..."
                )
        self.hooks = {key: self.lm.resolve(name, key) for key, name in given.items() if name is not None}
        self._width, self._is_transcoder = dictionary.width, dictionary.is_transcoder
        self._on: dict[torch.device, Dictionary] = {dictionary.device: dictionary}
        self._stack: ExitStack | None = None
        self._places = True
        self._forward: Forward | None = None
        self._input: Tensor | None = None

    def act(self, forward: Forward, x_NSD: Tensor, y_NSE: Tensor) -> Tensor:
        """Return what the activations become.

        Args:
            forward: the tokens that pass.
            x_NSD: activations at the hook.
            y_NSE: activations at a transcoder's target; of an autoencoder those at the hook.
        """
        raise NotImplementedError

    def quick(self, forward: Forward, y_NSE: Tensor) -> Tensor | None:
        """Return what activations of one token become where that is simple to tell; None: see `act`."""
        return None

    def on(self, device: torch.device) -> Dictionary:
        """Return the dictionary on the device of the activations."""
        if device not in self._on:
            self._on[device] = self.dictionary.to(device)
        return self._on[device]

    def __enter__(self: S) -> S:
        """Set the hooks.

        Raises:
            ConfigError: they are set already.
        """
        if self._stack is not None:
            raise ConfigError("this is in use already; make another: d.attach(lm) or d.steer(lm, ...)")
        base = self.lm.base
        with ExitStack() as stack:
            stack.callback(setattr, self, "_forward", None)
            self._begin(stack)
            *inner, last = self.hooks
            for key in inner:
                stack.callback(hook_on(base, self.hooks[key], self._note, key).remove)
            stack.callback(hook_on(base, self.hooks[last], self._replace, last).remove)
            self._without_compiling(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove all hooks from the model."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _begin(self, stack: ExitStack) -> None:
        """Read the tokens of each forward as it begins."""
        model, *within = self._readers()
        forwards = ForwardReader(model, self.lm.special_ids, self._places)

        def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._forward, self._input = forwards.read(args, kwargs), None

        if not within:
            stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
            return
        names = {each: list(inspect.signature(each.forward).parameters) for each in (model, *within)}
        running: list[Any] = []

        def first(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not running:
                running.append(module)
                begin(module, (), dict(zip(names[module], args, strict=False)) | kwargs)

        def end(module: Any, _args: Any, _output: Any) -> None:
            if running and running[0] is module:
                running.clear()

        for each in names:
            stack.callback(each.register_forward_pre_hook(first, with_kwargs=True).remove)
            stack.callback(each.register_forward_hook(end, always_call=True).remove)

    def _readers(self) -> list[Any]:
        """Return what is called with the tokens: the model without its head, and parts of it around the hook.

        A model with a head may call such a part itself, and not what the part belongs to.
        """
        base, model = self.lm.base, self.lm.reader
        parts = list(self.hooks.values())[-1].split(":")[0].split(".")
        around = [base.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
        own = set(model.modules()) - {model}
        takes = [each for each in around if each in own]
        return [model, *(each for each in takes if "input_ids" in inspect.signature(each.forward).parameters)]

    def _without_compiling(self, stack: ExitStack) -> None:
        """Keep `generate` from compiling the model, which would keep hooks, or lose them."""
        settings = getattr(self.lm.model, "generation_config", None)
        if settings is not None and hasattr(settings, "disable_compile"):
            stack.callback(setattr, settings, "disable_compile", settings.disable_compile)
            settings.disable_compile = True

    def _note(self, x: Tensor) -> Tensor:
        if self._input is None:
            self._input = x
        return x

    def _replace(self, y: Tensor) -> Tensor:
        forward = self._forward
        if forward is None or forward.passed:
            return y  # a module of its own call, or one that runs several times in a forward
        forward.passed = True
        N, *seq = y.shape
        y_NSE = y if len(seq) == 2 and (N, seq[0]) == forward.shape else per_token(y, forward.shape)
        x_NSD = y_NSE
        if self._is_transcoder:
            if self._input is None:
                raise ConfigError(
                    f"the model reaches target_hook={self.hooks['target_hook']} before "
                    f"hook={self.hooks['hook']}: nothing can be spliced there"
                )
            x_NSD = per_token(self._input, forward.shape)
        if x_NSD.shape[-1] != self._width:
            raise ConfigError(
                f"{self.hooks['hook']} of {self.lm.name} has activations of width {x_NSD.shape[-1]}, the "
                f"dictionary is for {self.dictionary.width}; give the model that it was trained on"
            )
        found = None if self._is_transcoder or forward.shape[1] > 1 else self.quick(forward, y_NSE)
        if found is None:
            found = self.act(forward, x_NSD, y_NSE)
        return found if y_NSE is y else found.view_as(y)


def rows_at(x_NSD: Tensor, at_NS: Tensor | None) -> Tensor:
    """Return the activations at some tokens [B, D]; None: at all of them."""
    return x_NSD.reshape(-1, x_NSD.shape[-1]) if at_NS is None else x_NSD[at_NS]


def replaced(x_NSD: Tensor, at_NS: Tensor | None, rows_BD: Tensor) -> Tensor:
    """Return activations with other ones at some tokens; None: at all of them."""
    if at_NS is None:
        return rows_BD.to(x_NSD.dtype).view_as(x_NSD)
    found = x_NSD.clone()
    found[at_NS] = rows_BD.to(x_NSD.dtype)
    return found
