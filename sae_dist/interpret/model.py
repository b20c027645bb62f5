"""A language model that a dictionary is used on: the one it was trained on, or one that the user holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import without_panics
from sae_dist.core.types import LlmFacts
from sae_dist.llm.architecture import reader, text_part
from sae_dist.llm.facts import llm_facts, position_offset
from sae_dist.llm.inputs import model_inputs
from sae_dist.llm.names import resolve_hook
from sae_dist.llm.special import around, tokenizer_of
from sae_dist.llm.weights import load_weights
from sae_dist.tokens.encoder import without_surrogates

if TYPE_CHECKING:
    from sae_dist.interpret.dictionary import Dictionary
    from sae_dist.interpret.sets import DictionarySet

Chat = Sequence[Mapping[str, str]]
"""Messages with a `role` and a `content` each."""


@dataclass(frozen=True)
class LanguageModel:
    """A model of transformers with what belongs to it. It can be called like the model itself.

    Attributes:
        model: the whole model with its head; of an encoder the base model.
        tokenizer: None if there is none: then texts must be given as token ids.
        prefix, suffix: special tokens put before and after a text, BOS or CLS and SEP, as in training.
        special_ids: every special token.
        causal: it predicts next tokens.
        facts: what is known of the model that a dictionary was trained on; None: the user's model.
    """

    model: Any
    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_ids: frozenset[int]
    causal: bool
    name: str
    facts: LlmFacts | None = None

    @property
    def base(self) -> Any:
        """The model without its head, which hooks are relative to."""
        return self.model.base_model

    @property
    def reader(self) -> Any:
        """The part of the base model that reads text: of an encoder and decoder, the encoder."""
        return reader(self.base)

    @property
    def device(self) -> torch.device:
        """The device of the embedding, where token ids go."""
        table = self.model.get_input_embeddings()
        return next(iter((table or self.model).parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model as transformers does."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does."""
        return self.model.generate(*args, **kwargs)

    def ids(self, text: "str | Chat | Sequence[int] | Tensor") -> Tensor:
        """Return the token ids of a text [S], with the special tokens around it that training had.

        Args:
            text: a text; messages, which go through the tokenizer's chat template; or token ids, which are
                taken as they are.

        Raises:
            ConfigError: the model has no tokenizer or no chat template, or a token that it does not know.
        """
        if isinstance(text, Tensor) or not isinstance(text, str) and text and isinstance(text[0], int):
            ids = torch.as_tensor(text, dtype=torch.int64).reshape(-1).tolist()
        elif self.tokenizer is None:
            raise ConfigError(f"{self.name} has no tokenizer; give token ids in place of a text")
        elif isinstance(text, str):
            plain = self._plain(text)
            ids = [*self.prefix, *plain, *self.suffix]
        else:
            if not getattr(self.tokenizer, "chat_template", None):
                raise ConfigError(f"the tokenizer of {self.name} has no chat template; give a text")
            plain = self.tokenizer.apply_chat_template(list(text), tokenize=True, return_dict=False)
            begins = tuple(plain[: len(self.prefix)]) == self.prefix
            ids = list(plain) if begins else [*self.prefix, *plain]
        size = text_part(self.model.config).vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < size:
            raise ConfigError(
                f"token ids from {min(ids)} to {max(ids)}; those of {self.name} are 0 to {size - 1}"
            )
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def _plain(self, text: str) -> list[int]:
        """Return the token ids of a text alone, as training reads it."""
        # Not verbose: a text that is too long is refused, or read, without a warning.
        with without_panics(f"the tokenizer of {self.name}"):
            found = self.tokenizer(without_surrogates(text), add_special_tokens=False, verbose=False)
        return list(found["input_ids"])

    def batch(self, texts: "Sequence[str | Chat | Sequence[int]]") -> dict[str, Tensor]:
        """Return texts as arguments of the model, padded on the left: input_ids and attention_mask [N, S]."""
        each = [self.ids(text) for text in texts]
        longest = max(map(len, each))
        ids = torch.full((len(each), longest), self.pad_id, dtype=torch.int64, device=self.device)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(each):
            ids[row, longest - len(own) :] = own
            mask[row, longest - len(own) :] = 1
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def pad_id(self) -> int:
        """The token that padding holds; the mask says that it is padding."""
        known = getattr(self.tokenizer, "pad_token_id", None)
        return int(known) if known is not None else min(self.special_ids, default=0)

    def as_trained(self, ids_S: Tensor) -> dict[str, Tensor | Any]:
        """Return the arguments with which training and evaluation run a document alone."""
        ids_NS = ids_S[None]
        if self.facts is None:
            return {"input_ids": ids_NS, "attention_mask": torch.ones_like(ids_NS)}
        return model_inputs(
            ids_NS,
            torch.ones_like(ids_NS),
            torch.arange(len(ids_S), device=ids_S.device)[None],
            self.reader,
            text_part(self.model.config),
            first_position=position_offset(self.model),
            causal=self.causal,
            packed=self.facts.packed,
            dtype=self.dtype,
        )

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; without a tokenizer its number."""
        if self.tokenizer is None:
            return [str(each) for each in ids]
        return [str(self.tokenizer.decode([each])) for each in ids]

    def resolve(self, hook: str, key: str = "hook") -> str:
        """Return `path:in` or `path:out` in the base model for a hook's name.

        Raises:
            ConfigError: the model has no such place; the nearest are named.
        """
        depth = getattr(text_part(self.model.config), "num_hidden_layers", 0)
        return resolve_hook(hook, self.base, depth, key)[0]


def model(
    dictionary: "Dictionary | DictionarySet",
    lm: Any = None,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load the model that a dictionary was trained on, with its tokenizer and special tokens as in training.

    Args:
        dictionary: one, or a set, whose dictionaries are of one model.
        lm: a model of transformers that is in memory, or a name or folder: used in place of the one named.
        tokenizer: of `lm`; None: the one saved with it.
        device: None: the dictionary's.
        dtype: None: that of the run's LLM, or float32.
        trust_remote_code: run code that the model brings along. A file never grants this.

    Raises:
        ConfigError: the dictionary does not say its model, that is not on this machine, or its run had leave
            for code of the model's own, which is not given again.
    """
    if lm is not None and not isinstance(lm, str | Path):
        return as_model(lm, tokenizer)
    dictionary = _one_of(dictionary)
    run, place = dictionary.place.run, dictionary.place
    name = str(lm) if lm is not None else place.model_name
    if name is None or (run is not None and lm is None and not run.has_llm):
        raise ConfigError(f"{place.folder} does not say its model; give one: sd.model(d, 'gpt2')")
    if run is not None and lm is None:
        if place.own_code and not trust_remote_code:
            raise ConfigError(
                f"{place.folder} is of a run with code that its model {name} brings along; if you trust it, "
                "say so again (llm.trust_remote_code=true, or sd.model(d, trust_remote_code=True)), or name "
                f"the model, to use it without its code (--model {name}, or sd.model(d, {name!r}))"
            )
        cfg: LlmConfig = replace(run.llm, compile=False, shard="none", trust_remote_code=trust_remote_code)
    else:
        cfg = LlmConfig(name=name, trust_remote_code=trust_remote_code)
    facts, _ = llm_facts(cfg, dictionary.hook, dictionary.target_hook)
    kind = dtype or getattr(torch, cfg.dtype or "float32")
    where = torch.device(device) if device is not None else dictionary.device
    found, lacking, _ = load_weights(cfg, facts, device=where, dtype=kind, with_head=True, cut=False)
    if missing := sorted(key for key in lacking if "pooler" not in key):
        raise ConfigError(f"{name} has no weights for {missing[0]} and {len(missing) - 1} more parameters")
    if facts.causal:
        found.config.use_cache = text_part(found.config).use_cache = True  # for generation
    found.eval().requires_grad_(False)
    return LanguageModel(
        model=found,
        tokenizer=tokenizer or tokenizer_of(facts.path, trust_remote_code),
        prefix=facts.prefix,
        suffix=facts.suffix,
        special_ids=frozenset({*facts.special_ids, *facts.prefix, *facts.suffix}),
        causal=facts.causal,
        name=cfg.name,
        facts=facts,
    )


def _one_of(dictionaries: "Dictionary | DictionarySet") -> "Dictionary":
    """Return the first of a set that says its model: all that do say the same one."""
    if not isinstance(dictionaries, Sequence):
        return dictionaries
    return next((each for each in dictionaries if each.place.model_name), dictionaries[0])


def as_model(lm: Any, tokenizer: Any = None) -> LanguageModel:
    """Return a model of transformers with its tokenizer; a `LanguageModel` as it is.

    Raises:
        ConfigError: it is no model of transformers, or torch.compile has wrapped it.
    """
    if isinstance(lm, LanguageModel):
        return lm if tokenizer is None else replace(lm, tokenizer=tokenizer)
    _check_not_compiled(lm)
    if not isinstance(lm, torch.nn.Module) or not hasattr(lm, "base_model") or not hasattr(lm, "config"):
        raise ConfigError(f"a {type(lm).__name__} is no model of transformers; give one, or sd.model(d)")
    name = str(getattr(lm.config, "_name_or_path", "") or "")
    tokenizer = tokenizer or (tokenizer_of(name) if name else None)
    causal = hasattr(lm, "lm_head") or "CausalLM" in type(lm).__name__ or "LMHead" in type(lm).__name__
    prefix, suffix = ((), ()) if tokenizer is None else around(tokenizer, causal)
    special = frozenset(getattr(tokenizer, "all_special_ids", None) or ())
    return LanguageModel(
        lm, tokenizer, prefix, suffix, special | {*prefix, *suffix}, causal, name or type(lm).__name__
    )


def _check_not_compiled(lm: Any) -> None:
    """Check that hooks reach the model's modules.

    Raises:
        ConfigError: torch.compile has wrapped the model, or a part of it: it skips hooks set afterwards.
    """
    modules = list(lm.modules()) if isinstance(lm, torch.nn.Module) else []
    for each in (lm, *modules):
        wrapped = type(each).__name__ == "OptimizedModule" or getattr(each, "_compiled_call_impl", None)
        if wrapped or hasattr(getattr(each, "__dict__", {}).get("forward"), "_torchdynamo_orig_callable"):
            raise ConfigError(
                f"{type(lm).__name__} is wrapped by torch.compile, which ignores hooks that are set later; "
                "give the model as it was before (model._orig_mod), and compile nothing of it"
            )


def check_same(dictionary: "Dictionary", lm: LanguageModel, force: bool) -> None:
    """Check that a model is the one that a dictionary was trained on, as far as names tell.

    Raises:
        ConfigError: it has another name, and `force` is false.
    """
    said = dictionary.place.model_name
    if force or said is None or lm.facts is not None and lm.facts.name == said:
        return
    ours, theirs = Path(lm.name).name.lower(), Path(said).name.lower()
    unnamed = not getattr(lm.model.config, "_name_or_path", "")
    if ours != theirs and not unnamed:
        raise ConfigError(
            f"the dictionary was trained on {said}, and this model is {lm.name}; give that one, or "
            "force=True to go on"
        )
