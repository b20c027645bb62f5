"""Small random models of every language-model architecture of transformers, and their rows beside ours."""

import dataclasses
import inspect
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sae_dist.config.sections import LlmConfig, TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import TokenChunk
from sae_dist.llm.architecture import auto_classes, reader
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.choose import choose_packing
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.proof import difference
from sae_dist.tokens.source import open_tokens
from tests.helpers.tiny_llms import EMBEDDED

LAYERS, WIDTH = 4, 32
SIZES: dict[str, Any] = dict(
    vocab_size=2048,
    vocab_size_per_layer_input=2048,
    hidden_size=WIDTH,
    d_model=WIDTH,
    n_embd=WIDTH,
    emb_dim=WIDTH,
    embed_dim=WIDTH,
    dim=WIDTH,
    embedding_size=WIDTH,
    n_positions=128,
    max_position_embeddings=128,
    max_seq_len=128,
    num_hidden_layers=LAYERS,
    num_layers=LAYERS,
    n_layer=LAYERS,
    n_layers=LAYERS,
    num_decoder_layers=2,
    encoder_layers=2,
    decoder_layers=2,
    depth=2,
    num_attention_heads=4,
    n_head=4,
    n_heads=4,
    num_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    d_kv=8,
    d_head=8,
    global_head_dim=8,
    intermediate_size=48,
    ffn_dim=48,
    d_ff=48,
    d_inner=48,
    n_inner=48,
    hidden_dim=48,
    shared_expert_intermediate_size=16,
    moe_intermediate_size=16,
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    moe_num_experts=4,
    num_experts_per_tok=2,
    moe_top_k=2,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    kv_lora_rank=8,
    q_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    sliding_window=16,
    state_size=8,
    hidden_size_per_layer_input=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    mamba_n_heads=4,
    mamba_d_head=16,
    mamba_d_state=8,
    mamba_d_ssm=64,
    mamba_expand=2,
    mamba_n_groups=1,
    image_size=28,
    patch_size=14,
    out_hidden_size=WIDTH,
    projection_dim=WIDTH,
    word_embed_proj_dim=WIDTH,
)
MLA = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "youtu", "longcat_flash")
OWN: dict[str, dict[str, Any]] = {
    "mamba2": dict(num_heads=8, head_dim=8, n_groups=1, expand=2),
    "codegen": dict(rotary_dim=4),
    "gptj": dict(rotary_dim=4),
    "esmc": dict(num_key_value_heads=4),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "zamba2": dict(layer_types=["mamba", "hybrid"] * 2, hybrid_layer_ids=[1, 3]),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "glm4_moe_lite": dict(num_key_value_heads=4),
    "minicpm3": dict(num_key_value_heads=4),
    "sarvam_mla": dict(num_key_value_heads=4),
    "ernie4_5_moe": dict(moe_k=2, moe_num_experts=4),
    "plbart": dict(encoder_attention_heads=4, decoder_attention_heads=4),
    "longformer": dict(attention_window=16),
    "zaya": dict(num_experts_per_tok=1),
    "reformer": dict(axial_pos_embds=False, attn_layers=["local"] * 4),
    "gemma3n_text": dict(num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2),
    **{kind: dict(num_key_value_heads=4) for kind in MLA},
}
TEXT_PARTS = {
    kind: dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]))
    for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
}
HOOKS = {
    "albert": "encoder.albert_layer_groups.0.albert_layers.0",
    "longcat_flash": "layers.1",
    "hrm_text": "L_module.layers.1",
    "blt": "local_encoder.layers.1",
}
"""Hooks of models whose layers are no list of as many as their config says."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
LANGUAGE = sorted(
    set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    | set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    | set(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES)
)
IMAGES = sorted(set(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(LANGUAGE))


def small_config(kind: str) -> PretrainedConfig:
    """Make a config of an architecture with few, narrow layers, and otherwise its default values."""
    return _small(CONFIG_MAPPING[kind], OWN.get(kind, {}))


def _small(cls: Any, own: dict[str, Any]) -> PretrainedConfig:
    known = set(inspect.signature(cls.__init__).parameters) | {f.name for f in dataclasses.fields(cls)}
    given = {key: value for key, value in SIZES.items() if key in known}
    given |= {key: 2 + place for place, key in enumerate(SPECIAL) if key in known}
    default = cls()
    for name in cls.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            given[name] = _small(
                type(part), TEXT_PARTS.get(cls.model_type, {}) if name == "text_config" else {}
            )
    return cls(**given | own)


@dataclasses.dataclass(frozen=True)
class Tried:
    """What happened to one architecture.

    Attributes:
        how: packed | one document in a sequence | refused | failed | not built (so small, by transformers)
        words: why, in one line.
        apart: mean relative difference of its rows from those of the untouched model, each document alone.
    """

    kind: str
    how: str
    words: str = ""
    apart: float = 0.0

    @property
    def trains(self) -> bool:
        """Whether its rows can be had."""
        return self.how in ("packed", "one document in a sequence")


def try_architecture(kind: str, folder: Path, rows: int = 300) -> Tried:
    """Save a small random model, read short texts through it, and compare its rows with its own."""
    try:
        folder.mkdir(exist_ok=True)
        save_small(kind, folder)
    # Of a default that transformers itself cannot build from small sizes, nothing can be said.
    except Exception as error:
        return Tried(kind, "not built", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    try:
        return _compared(kind, folder, rows)
    except ConfigError as error:
        return Tried(kind, "refused", str(error).replace(str(folder), kind))
    except Exception as error:
        return Tried(kind, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def _compared(kind: str, folder: Path, rows: int) -> Tried:
    cfg, cpu = LlmConfig(name=str(folder)), torch.device("cpu")
    facts, _ = choose_packing(cfg, llm_facts(cfg, HOOKS.get(kind))[0])
    llm = FrozenLlm.load(cfg, facts, device=cpu, dtype=torch.float32, with_head=False, witness=True)
    texts = TokensConfig(kind="text", path=str(short_texts(folder)))
    tokens = open_tokens(texts, facts, lanes=1, seed=0, rows=rows, held_out=False)
    chunk = next(tokens.open(0, None))
    found = LlmChunkSource(llm, tokens, rows=rows, spare=0, max_norm_multiple=None).compute(chunk).rows_RD
    untouched = getattr(transformers, facts.auto[0]).from_pretrained(folder, dtype=torch.float32).eval()
    untouched.config.use_cache = untouched.config.get_text_config().use_cache = False
    apart = difference(found, rows_alone(untouched, facts.hook, chunk), facts.widths)
    return Tried(kind, "packed" if facts.packed else "one document in a sequence", llm.proof, apart)


def short_texts(folder: Path, documents: int = 300) -> Path:
    """Write documents of a few to some dozen words, so that a sequence holds several."""
    words = " ".join(topics.values()).split()
    random, at, path = Random(0), 0, folder / "texts.jsonl"
    with open(path, "w") as file:
        for _ in range(documents):
            count = random.choice((3, 8, 20, 60))
            file.write(json.dumps({"text": " ".join(words[at : at + count])}) + "\n")
            at = (at + count) % (len(words) - 60)
    return path


def save_small(kind: str, folder: Path) -> None:
    """Save a small random model with the embedded model's tokenizer.

    Weights are larger than at initialisation, so that attention is far from uniform and a leak shows.
    """
    config = small_config(kind)
    torch.manual_seed(0)
    model = getattr(transformers, auto_classes(config, kind)[1]).from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)


@torch.no_grad()
def rows_alone(model: Any, hook: str, chunk: TokenChunk) -> torch.Tensor:
    """Run each document of a chunk by itself through a model as it is; return the rows of kept tokens."""
    caught: list[torch.Tensor] = []

    def catch(_module: Any, _args: Any, output: Any) -> None:
        caught.append(output if torch.is_tensor(output) else output[0])

    handle = model.get_submodule(hook.split(":")[0]).register_forward_hook(catch)
    parts = []
    for ids, segment, keep in zip(chunk.ids_NS, chunk.segment_NS, chunk.keep_NS, strict=True):
        for number in range(1, int(segment.max()) + 1):
            here = segment == number
            caught.clear()
            reader(model)(input_ids=ids[here][None])
            parts.append(caught[0].view(int(here.sum()), -1)[keep[here]])
    handle.remove()
    return torch.cat(parts)


def quiet() -> None:
    """Let transformers say nothing about small models, on one thread."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def table(found: Sequence[Tried]) -> str:
    """Return the lines of a table of Markdown, those that train without words."""
    lines = ["| architecture | documents | rows differ by | |", "|---|---|---|---|"]
    for each in found:
        apart = f"{each.apart:.0e}" if each.trains else ""
        cut = "cut after the last hook" in each.words
        lines.append(f"| {each.kind} | {each.how} | {apart} | {'' if cut else each.words} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table: `python -m tests.helpers.architectures [kind ...]`."""
    quiet()
    with TemporaryDirectory() as folder:
        found = [try_architecture(kind, Path(folder) / kind) for kind in sys.argv[1:] or (*LANGUAGE, *IMAGES)]
    print(table(found))
    for each in ("packed", "one document in a sequence", "refused", "failed", "not built"):
        print(f"{each}: {sum(one.how == each for one in found)}", file=sys.stderr)


if __name__ == "__main__":
    main()
