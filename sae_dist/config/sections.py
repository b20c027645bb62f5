"""The sections of a run's config, one dataclass each, as people write them. See `config.run`."""

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class LlmConfig:
    """The frozen language model."""

    name: str = MISSING  # "embedded", "minilm", or a Hugging Face name or path
    dtype: str | None = None  # null: float64 with precision=float64, else float32 (CPU) or bfloat16 (CUDA)
    attn: str | None = None  # attn_implementation: sdpa | eager; null: sdpa where the model has it
    # several documents in a sequence, or one in each; null: several where the model keeps them apart
    packed: bool | None = None
    trust_remote_code: bool = False  # run code that comes with the model
    shard: str = "none"  # none | zero3 | tp: how the ranks of a producer group hold the model together
    shard_size: int = 1  # ranks of a producer group; 1 with shard=none
    offload: bool = False  # zero3: parameters stay in host memory, and visit the device layer by layer
    compile: bool = False  # torch.compile of the truncated forward; shard=none only
    random_init: bool = False  # random weights in the model's shapes: a control, shard=none only


@dataclass
class TokensConfig:
    """The source of tokens, and which of their activations are kept."""

    kind: str = MISSING  # text | webdataset | hf
    path: str | None = None  # text: file or folder (null: Python's own text); webdataset: tar files (pattern)
    dataset: str | None = None  # hf: a dataset's name, folder, or a loader name such as json
    subset: str | None = None  # hf: the dataset's configuration
    data_files: str | None = None  # hf: files for a loader such as json
    split: str = "train"  # hf: the part of the dataset
    column: str = "text"  # hf: the column with text, lists of token ids, or chats: lists of {role, content}
    roles: list[str] | None = None  # hf, chats: whose words are activations, such as [assistant]; null: all
    streaming: bool = True  # hf: stream, or download and map
    context: int | None = None  # tokens per sequence; null: the model's limit, at most 256
    epochs: int | None = None  # passes over the source; null: as many as the run needs
    max_norm_multiple: float | None = 10.0  # longer rows, in medians of their chunk, are left out
    spare: float = 1 / 64  # extra activations of a chunk, as a share, that replace those left out for length
    # more token ids that are no activations; special tokens never are
    exclude_ids: list[int] | None = None


@dataclass
class ActivationsConfig:
    """The source of activations, and how they are scaled."""

    kind: str = MISSING  # llm | file | cache | synthetic
    # file: an .npy or .safetensors array [N, D]; cache: what `sae-dist harvest` wrote, a folder, a URL, or
    # a pattern in which {} stands for a file's name, such as "pipe:aws s3 cp s3://bucket/cache/{} -"
    path: str | None = None
    key: str | None = None  # file: the tensor's name in a .safetensors file (null: the only one)
    scaling: str = "sqrt_width"  # sqrt_width: mean norm becomes sqrt(D); centred: mean 0 too; none
    num_features: int | None = None  # synthetic: true features
    width: int | None = None  # synthetic: dimensions of an activation
    mean_active: float | None = None  # synthetic: features that fire in a row, on average: the true L0
    zipf: float | None = None  # synthetic: feature i fires at a rate ~ 1 / i^zipf; 0: all alike
    magnitudes: str | None = None  # synthetic: constant (1) | uniform (0 to 2) | exponential (mean 1)
    noise: float | None = None  # synthetic: standard deviation of the Gaussian added to every number
    groups: str | None = None  # synthetic: independent | together | hierarchy | apart
    group_size: int | None = None  # synthetic: features of a group, neighbours in number
    # synthetic: together: correlation within a group; hierarchy: share of the parent's rows a child fires in
    group_strength: float | None = None
    directions: list[Any] | None = None  # synthetic: one list per feature; null: random directions
    names: list[str] | None = None  # synthetic: one name per feature, for the picture

    @property
    def source_path(self) -> str:
        """Return the `path` of a kind that reads one."""
        assert self.path is not None, "checked by config.validate"
        return self.path


@dataclass
class CacheConfig:
    """The files that `sae-dist harvest` writes; only that command reads this."""

    dtype: str = "bfloat16"  # rows are kept in it, as with `precision`: bfloat16 | float32 | float64
    shard_chunks: int = 32  # consecutive chunks of a lane in one tar file


@dataclass
class ShuffleConfig:
    """Lanes: the deterministic shuffle (`shuffle.lanes`)."""

    # streams that documents are dealt to, each shuffled by itself; fixed per run; a multiple of shard * dp;
    # null: 48, or where these cannot be shared out what can
    lanes: int | None = None
    chunk_rows: int = 1024  # activations per chunk, the unit of transport
    # chunks per block: larger ones mix better, hold more memory; null: 8, or what a fifth of the run fills
    block_chunks: int | None = None


@dataclass
class TopologyConfig:
    """The roles of ranks. World = producers * llm.shard_size + groups * shard * dp."""

    producers: int = 0  # groups of llm.shard_size ranks that run the LLM; 0: consumers run it in between
    shard: int = 1  # ranks that share the latents of a dictionary
    dp: int = 1  # replicas of those, which share the rows of a step
    groups: int = 1  # groups of shard * dp consumers, among which the dictionaries of a grid are shared out
    in_flight: int = 2  # chunks sent ahead of the one being received, per producer and consumer
    timeout_s: float = 600.0  # seconds that a rank may be silent before the others name it and end


@dataclass
class SaeConfig:
    """The dictionary. Fields that name kinds are read by those only."""

    kind: str = MISSING  # how codes are computed and trained: the name of a file in conf/sae
    num_latents: int | None = None  # null: expansion * D
    expansion: float | None = None  # latents as a multiple of the activation's width D
    k: int = 32  # codes per row: topk at most, batchtopk and matryoshka on average
    aux_k: int | None = None  # latents of the auxiliary loss; null: D / 2, at most F / 2; 0: off
    aux_coefficient: float = 0.03125  # weight of that loss (AuxK): dead latents explain what live ones miss
    # a latent is dead after so many tokens without firing; null: min(10M, a tenth of the run)
    dead_after: Any = None
    seed: int | None = None  # of the initial weights alone; null: `seed`, which the order of data follows too
    start: str | None = None  # begin with the weights of this run, or export in SAELens' layout; null: random
    encoder_scale: float | None = None  # encoder init = this times decoder^T; null: see `config.resolve`
    skip: bool = False  # transcoder: add a linear path from input to output
    threshold_beta: float | None = None  # kinds that select over the batch: memory of the final threshold
    prefixes: list[float] | None = None  # matryoshka: nested prefixes as fractions of the latents, last 1
    sparsity: float | None = None  # kinds that select nothing: coefficient of the penalty, free of the width
    sparsity_warmup: float | None = None  # kinds that select nothing: its rise, as a fraction of the run
    l1_weighting: str | None = None  # relu: decoder_norm (free rows) | none (unit rows)
    penalty: str | None = None  # jumprelu: l0 | tanh
    target_l0: float | None = None  # jumprelu with penalty=l0: sparsity * (L0 / target - 1)^2 instead
    bandwidth: float | None = None  # jumprelu: width of the thresholds' pseudo-gradient
    threshold: float | None = None  # jumprelu: where thresholds start
    preact: float | None = None  # jumprelu: pull of silent latents to their threshold; 0: none


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    kind: str = MISSING  # adam | row_adam (touched rows only) | offload (state on the host)
    lr: float | None = None  # null: a fitted law of steps and latents (`optim.schedule.law`)
    encoder_lr: float = 0.3  # W_enc's learning rate as a share of lr, which is the decoder's
    bias_lr: float = 4.0  # the biases' as a multiple: they are in units of activations, not of unit rows
    beta1: float = 0.9  # Adam's memory of gradients
    beta2: float = 0.999  # and of their squares
    eps: float = 1e-20  # Adam's; negligible against any gradient
    clip: float | None = 1.0  # global norm of the gradient; null: off
    warmup: float | None = None  # fraction of the run; null: min(1000 steps, 20 % of the run)
    decay: float = 0.5  # last fraction of the run, linear to zero


OF_HOOKS = {"target_hook": "target_hook", "hook_num_latents": "sae.num_latents", "hook_k": "sae.k"}
"""The keys of `grid` with a value for each of `grid.hook`, and the key that each sets for a dictionary."""


@dataclass
class GridConfig:
    """Many dictionaries on one stream of activations: every combination of these lists. null: not varied.

    The lists that have a value for each of `hook` vary with it.
    """

    hook: list[str] | None = None  # values of hook; a * stands for the number of every layer
    target_hook: list[str] | None = None  # of target_hook, one for each hook: transcoders
    hook_num_latents: list[int] | None = None  # of sae.num_latents, one for each hook
    hook_k: list[int] | None = None  # of sae.k, one for each hook
    num_latents: list[int] | None = None  # of sae.num_latents
    k: list[int] | None = None  # of sae.k
    lr: list[float] | None = None  # of optim.lr
    seed: list[int] | None = None  # of sae.seed: the data and their order are the same

    @property
    def size(self) -> int:
        """The number of dictionaries."""
        return math.prod(
            len(values) for key, values in vars(self).items() if values is not None and key not in OF_HOOKS
        )

    @property
    def misfit(self) -> str | None:
        """The fault of the lists that have a value for each hook; None: they fit."""
        for key in OF_HOOKS:
            values = getattr(self, key)
            if values is None:
                continue
            if self.hook is None:
                return f"grid.{key} has a value for each of grid.hook; give that, too"
            if len(values) != len(self.hook):
                hooks = len(self.hook)
                return f"grid.{key} has {len(values)} values for the {hooks} of grid.hook; give one for each"
        return None


@dataclass
class MetricsConfig:
    """The metrics of a run and where they go; `sae_dist/metrics/README.md` lists all of them."""

    every: int = 10  # steps per line of metrics.jsonl
    console: bool = True  # print such a line, too, every few seconds
    wandb: str = "auto"  # auto (online with a key, else offline) | online | offline | off
    project: str = "sae_dist"  # W&B's
    group: str | None = None  # W&B's group; the dictionaries of a grid have its name here
    upload: bool = False  # W&B: upload the newest checkpoint and the export when the run has ended
    telemetry_s: float | None = 5.0  # seconds between samples of GPUs (NVML) and hosts; null: none
    # [first step, number of steps] that torch's profiler traces, into the run folder's traces/; null: none
    profile: list[int] | None = None


@dataclass
class CheckpointConfig:
    """The times of checkpoints, and which of them are kept."""

    every: Any = "500k"  # tokens between checkpoints; null: only the final one
    keep: int = 2  # newest checkpoints kept
    keep_every: Any = None  # tokens between those kept for good; null: none but the final
    background: bool = True  # a step waits for the copy to the host only; false: until all is written


@dataclass
class EvalConfig:
    """The extent of evaluations in training, at its end, and by `sae-dist eval`."""

    # held-out activations for FVU, L0, dead latents; 0: no evaluation; null: 500k, or 50k below 1M trained
    tokens: Any = None
    ce_tokens: Any = None  # held-out tokens for cross-entropy; 0: none; null: 64k, or 8k below 1M trained
    baselines: bool = True  # PCA with k components and the untrained dictionary, beside FVU
    every: Any = None  # tokens between evaluations in training; null: none
    rows: Any = "16k"  # held-out activations of each of those, kept on the host by the consumers
    ce: Any = None  # held-out tokens of each for CE and KL, for which a consumer keeps the LLM; null: none
    corpus: str | None = None  # sae-dist eval: a second text, file or folder, for fvu_second_corpus
    probes: str | None = None  # sae-dist eval: a .jsonl file of text and label, or python: its own tokens
    absorption: bool = False  # sae-dist eval: first-letter absorption
    controls: bool = False  # sae-dist eval: on activations of a random LM, and on shuffled ones


@dataclass
class ClusterProducerConfig:
    """The resources of producers where they differ from those of consumers; null: they do not."""

    partition: str | None = None  # as cluster.partition, and so on
    nodes: int | None = None  # of the producers' part of the job
    cpus_per_task: int | None = None  # of a producer
    gpus_per_task: int | None = None  # of a producer
    mem: str | None = None  # of a node
    sbatch: list[str] | None = None  # more options of that part


@dataclass
class ClusterConfig:
    """The resources that `sae-dist submit` and `hydra/launcher=slurm` request; null: not requested."""

    account: str | None = None  # Slurm's --account
    partition: str | None = None  # --partition
    qos: str | None = None  # --qos
    time: str | None = None  # of one job, as Slurm writes it: 90 (minutes), 12:00:00, 2-00:00:00
    nodes: int | None = None  # null: as many as the ranks need
    cpus_per_task: int = 4  # of a rank
    gpus_per_task: int = 0  # of a rank: 1 trains on GPUs
    mem: str | None = None  # of a node, such as 200G
    warn_s: int = 300  # seconds before the end of `time` when the ranks are told to save and stop
    requeue: bool = True  # go on by itself after that, after a preemption and after the failure of a node
    restarts: int = 3  # new starts within a job after a rank failed, in a row without a new checkpoint
    jobs: int | None = None  # of a sweep at once; null: as many as Slurm starts
    setup: list[str] = field(default_factory=list)  # lines of shell before the ranks start: modules, exports
    sbatch: list[str] = field(default_factory=list)  # more options of the job, such as --constraint=h100
    # more options of the step, such as --container-image=... of pyxis
    srun: list[str] = field(default_factory=lambda: ["--cpu-bind=cores"])
    command: str | None = (
        None  # what a rank runs, such as sae-dist in a container; null: the Python that submits
    )
    producer: ClusterProducerConfig = field(default_factory=ClusterProducerConfig)
