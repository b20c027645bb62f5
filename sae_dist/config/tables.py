"""The tables behind `config.validate`: which values a field may have, and which fields a kind reads."""

from sae_dist.config.kinds import KINDS
from sae_dist.config.rules.synthetic import SYNTHETIC_ONLY

CHOICES = {
    "resume": ("never", "auto"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("float32", "float64", "bfloat16"),
    "matmul": ("float32", "tf32"),
    "kernels": ("auto", "triton", "torch", "reference"),
    "llm.dtype": ("float32", "float64", "bfloat16", "float16"),
    "llm.attn": ("sdpa", "eager"),
    "llm.shard": ("none", "zero3", "tp"),
    "tokens.kind": ("text", "webdataset", "hf"),
    "activations.kind": ("llm", "file", "cache", "synthetic"),
    "cache.dtype": ("bfloat16", "float32", "float64"),
    "activations.scaling": ("sqrt_width", "centred", "none"),
    "activations.magnitudes": ("constant", "uniform", "exponential"),
    "activations.groups": ("independent", "together", "hierarchy", "apart"),
    "sae.kind": tuple(KINDS),
    "sae.l1_weighting": ("decoder_norm", "none"),
    "sae.penalty": ("l0", "tanh"),
    "optim.kind": ("adam", "row_adam", "offload"),
    "metrics.wandb": ("auto", "online", "offline", "off"),
}
MEANT = {
    "false": ("off", "none", "never"),
    "true": ("auto",),
    "disabled": ("off",),
    "gpu": ("cuda",),
    "bf16": ("bfloat16",),
    "fp16": ("float16", "bfloat16"),
    "fp32": ("float32",),
    "fp64": ("float64",),
}
"""What is meant by words that are none of `CHOICES`, and look like others."""
MAY_BE_OPEN = (
    "llm.dtype",
    "llm.attn",
    "activations.magnitudes",
    "activations.groups",
    "sae.l1_weighting",
    "sae.penalty",
)
POSITIVE = (
    "train_tokens batch tokens.context tokens.epochs tokens.max_norm_multiple shuffle.lanes "
    "shuffle.chunk_rows shuffle.block_chunks llm.shard_size topology.shard topology.dp topology.groups "
    "topology.in_flight topology.timeout_s sae.num_latents sae.expansion sae.k sae.dead_after "
    "sae.encoder_scale sae.target_l0 sae.bandwidth sae.threshold optim.lr optim.encoder_lr optim.bias_lr "
    "optim.eps optim.clip metrics.every checkpoint.keep checkpoint.keep_every activations.num_features "
    "activations.width activations.mean_active activations.group_size activations.group_strength "
    "cache.shard_chunks cluster.nodes cluster.cpus_per_task cluster.jobs cluster.producer.nodes "
    "cluster.producer.cpus_per_task metrics.telemetry_s eval.every eval.rows eval.ce"
).split()
NOT_NEGATIVE = (
    "seed sae.seed tokens.spare topology.producers sae.aux_k sae.aux_coefficient sae.sparsity sae.preact "
    "optim.beta1 optim.beta2 optim.warmup optim.decay checkpoint.every eval.tokens eval.ce_tokens "
    "activations.zipf activations.noise cluster.gpus_per_task cluster.warn_s cluster.restarts "
    "cluster.producer.gpus_per_task"
).split()
BELOW_ONE = ("optim.beta1", "optim.beta2", "sae.threshold_beta")
AT_MOST_ONE = ("sae.sparsity_warmup",)
LARGEST_SEED = 2**32 - 1
LARGEST_MATRIX = 2**33
"""Numbers in the true features of synthetic activations."""
LARGEST_GRID = 1_000
"""Dictionaries of a grid."""

TEXT_ONLY = (
    "hook",
    "target_hook",
    "tokens.path",
    "tokens.dataset",
    "tokens.subset",
    "tokens.data_files",
    "tokens.context",
    "tokens.epochs",
    "tokens.roles",
    "tokens.exclude_ids",
)
HF_ONLY = ("tokens.dataset", "tokens.subset", "tokens.data_files", "tokens.roles")
UNREAD = {
    ("tokens.kind", "text"): HF_ONLY,
    ("tokens.kind", "webdataset"): HF_ONLY,
    ("tokens.kind", "hf"): ("tokens.path",),
    ("activations.kind", "llm"): ("activations.path", "activations.key", *SYNTHETIC_ONLY),
    ("activations.kind", "file"): (*TEXT_ONLY, *SYNTHETIC_ONLY),
    ("activations.kind", "cache"): ("activations.key", *SYNTHETIC_ONLY),
    ("activations.kind", "synthetic"): (*TEXT_ONLY, "activations.path", "activations.key"),
    ("activations.groups", "independent"): ("activations.group_size", "activations.group_strength"),
    ("activations.groups", "apart"): ("activations.group_strength",),
}
"""Fields that a kind does not read; a value there would mislead and is refused."""
GROUP_OF = {
    "tokens.path": "tokens=text or tokens=webdataset",
    "tokens.dataset": "tokens=hf",
    "tokens.subset": "tokens=hf",
    "tokens.data_files": "tokens=hf",
    "tokens.roles": "tokens=hf",
    "activations.path": "activations=file",
    "activations.key": "activations=file",
    **dict.fromkeys(SYNTHETIC_ONLY, "activations=synthetic"),
}
