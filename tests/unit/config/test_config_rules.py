"""Rules between fields, and what is filled in where a field is open."""

import dataclasses

import pytest

from sae_dist.config.resolve import identity, resolve, resolved_members
from sae_dist.config.run import Resolved, Single, flat, narrowed, parse_counts
from sae_dist.config.tables import CHOICES, NOT_NEGATIVE, POSITIVE, UNREAD
from sae_dist.config.validate import get, validate
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.launch.compose import compose_config

FACTS = LlmFacts(
    name="org/gpt2",
    path="org/gpt2",
    hook="h.3.attn:in",
    width=96,
    causal=True,
    context=1024,
    vocab_size=100,
    prefix=(),
    suffix=(),
)


def composed(*overrides):
    return parse_counts(compose_config(list(overrides)))


def resolved(*overrides, facts=FACTS):
    return resolve(compose_config(list(overrides)), facts, FACTS.width)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("sae.num_latents=24577 topology.shard=2", "=24577 is .* topology.shard=2; use .*=24576, or .*=1$"),
        ("sae.num_latents=3 sae.k=1 topology.shard=4", "use sae.num_latents=4, or topology.shard=1$"),
        ("sae.num_latents=100 sae.k=101", "sae.k=101 .* use at most 100"),
        ("sae.num_latents=100 sae.aux_k=101", "sae.aux_k=101 .*100"),
        (
            "topology.shard=5 shuffle.lanes=48 sae.num_latents=4096",
            "lanes=48, batch=2048 and .*=4096 are .* use .*lanes=50 batch=2045 sae.num_latents=4095, or",
        ),
        ("topology.shard=3", "batch=2048 .* use batch=2046, or topology.shard=2$"),
        ("topology.producers=49 shuffle.lanes=48", "=49 .* at most 48 producers, or shuffle.lanes=96"),
        ("train_tokens=100", "train_tokens=100 .* batch=2048"),
        ("batch=1", "batch=1: the loss is divided by the variance of a batch, .* at least 2"),
        ("tokens.roles=[user]", "tokens.roles=.*user.* is not read with tokens.kind=text; use tokens=hf or"),
        ("optim.beta2=1.0", "optim.beta2=1.0 must be 0 or more and below 1"),
        ("optim.warmup=0.5 optim.decay=0.6", "add up"),
        ("seed=4294967296", "seed"),
        ("sae.seed=4294967296", "sae.seed=4294967296 must be at most"),
        (
            "metrics.upload=true metrics.wandb=off",
            "metrics.upload=true uploads to W&B.*use metrics.wandb=auto",
        ),
        ("metrics.telemetry_s=0", "metrics.telemetry_s=0.0 must be greater than 0"),
        ("metrics.profile=[5]", r"metrics.profile=\[5\] must be the first step and how many"),
        ("metrics.profile=[0,3]", r"metrics.profile=\[0, 3\] must be .* metrics.profile=\[20,3\]"),
        ("metrics.profile=[999,3] train_tokens=20480", "begins after the run's last step, 10"),
        ("grid.k=[]", "grid.k=.. is empty"),
        ("grid.k=[8,16,8]", r"grid.k=\[8,16,8\] holds 8 twice"),
        ("grid.k=[8,16] sae=relu", "grid.k=.* is not read with sae.kind=relu"),
        ("grid.num_latents=[64,8] grid.k=[16]", r"sae.k=16 .* use at most 8 .*grid: num_latents=8,k=16"),
        ("topology.groups=2", "topology.groups=2 shares out the dictionaries of a grid; give a grid"),
        ("grid.k=[8,16] topology.groups=0", "topology.groups=0 must be greater than 0"),
        ("grid.k=[8,16] topology.groups=2", "topology.groups=2 with topology.producers=0: every group"),
        ("grid.k=[8,16] topology.groups=3 topology.producers=1", "more than the grid's 2 .* use at most 2"),
        (
            "grid.k=[8,16] topology.groups=2 topology.producers=1 llm.shard=zero3 llm.shard_size=2",
            "topology.groups=2 is not possible with llm.shard=zero3",
        ),
        ("grid.lr=[1e-3,-1]", r"optim.lr=-1.0 must be greater than 0 .*lr=-1.0"),
        (
            "checkpoint.keep_every=1.2M",
            "a multiple of .*; nearest: 1000000 or 1500000",
        ),
        (
            "checkpoint.keep_every=1M checkpoint.every=null",
            "read with checkpoint.every only",
        ),
        ("checkpoint.keep_every=0", "checkpoint.keep_every=0 must be greater than 0"),
        ("grid.seed=[0,1] checkpoint.keep=1", "checkpoint.keep=1 with a grid.* use checkpoint.keep=2"),
        ("grid.hook=[h.1,h.2] hook=h.3", "grid.hook=.* and hook=h.3 are both given"),
        ("grid.hook=[h.1,h.2] target_hook=h.3", "target_hook=h.3: give grid.target_hook in its place"),
        ("grid.hook=[h.1] activations=file activations.path=a.npy", "grid.hook=.* not read with activations"),
        ("sae.k=0", "sae.k=0 must be greater than 0"),
        ("optim.lr=-1", "optim.lr=-1.0 must be greater than 0"),
        ("optim.lr=nan", "optim.lr=nan"),
        ("matmul=tf16", "matmul=tf16 is not one of float32, tf32"),
        ("matmul=tf32 device=cpu", "matmul=tf32 is for float32 on a GPU, and device=cpu has no TF32"),
        ("precision=fp16", "precision=fp16 is not one of .* nearest: precision=bfloat16"),
        ("metrics.wandb=false", "is not one of auto, online, offline, off; nearest: metrics.wandb=off"),
        ("device=gpu", "nearest: device=cuda"),
        ("device=7", "device=7 is not one of auto, cpu, cuda$"),
        ("kernels=triton", "kernels=triton"),
        ("name=a/b", "name=a/b"),
        ("activations=file activations.path=a.npy hook=layers.1", "hook=layers.1 is not read"),
        ("activations=file activations.path=a.npy target_hook=layers.1", "target_hook=layers.1 is not read"),
        ("hook=h.1:out target_hook=h.1:out", "target_hook=h.1:out is hook itself; leave target_hook out"),
        ("sae.skip=true", "sae.skip=true .* give target_hook"),
        ("activations=file activations.path=a.npy topology.producers=1", "topology.producers=1 needs"),
        ("activations.path=a.npy", "use activations=file"),
        ("activations.width=3", "use activations=synthetic or leave activations.width out"),
        ("activations=file activations.path=a.npy activations.zipf=1", "activations.zipf=1.0 is not read"),
        ("activations=synthetic activations.path=a.npy", "use activations=file or leave"),
        ("activations=synthetic hook=layers.1", "hook=layers.1 is not read with activations.kind=synthetic"),
        ("activations=synthetic topology.producers=1", "makes its own activations: use topology.producers=0"),
        ("activations.kind=synthetic", "activations.num_features must be given .*num_features=512"),
        ("activations=synthetic activations.width=null", "activations.width must be given"),
        ("activations=synthetic activations.width=0", "activations.width=0 must be greater than 0"),
        ("activations=synthetic activations.num_features=1000000", "=1000000 must be at most 16384"),
        ("activations=synthetic activations.noise=-1", "activations.noise=-1.0 must be 0 or more"),
        ("activations=synthetic activations.mean_active=513", "=513 .* use at most 512"),
        ("activations=synthetic activations.magnitudes=normal", "nearest: activations.magnitudes="),
        ("activations=synthetic activations.group_size=4", "group_size=4 is not read with .*independent"),
        ("activations=synthetic activations.groups=apart", "activations.group_size must be given"),
        (
            "activations=synthetic activations.groups=together activations.group_size=4",
            "activations.group_strength must be given",
        ),
        (
            "activations=synthetic activations.groups=apart activations.group_size=4 "
            "activations.group_strength=1",
            "group_strength=1.0 is not read with activations.groups=apart",
        ),
        (
            "activations=synthetic activations.groups=hierarchy activations.group_size=4 "
            "activations.group_strength=1.5",
            "group_strength=1.5 must be at most 1",
        ),
        (
            "activations=synthetic activations.groups=apart activations.group_size=5",
            "group_size=5 does not divide activations.num_features=512; use 510 features",
        ),
        ("activations=synthetic activations.names=[a,b]", "names has 2 entries .* one per feature"),
        ("experiment=toy_tutorial activations.directions=[[1,0]]", "directions has 1 entries"),
        ("experiment=toy_tutorial activations.directions=[1,2,3,4]", "entry 0 is 1; give 2 numbers"),
        ("experiment=toy_tutorial activations.width=3", r"entry 0 is \[1, 0\]; give 3 numbers"),
        ("tokens.dataset=x", "use tokens=hf"),
        ("tokens=hf tokens.dataset=x tokens.path=y", "use tokens=text"),
        ("llm.name=", "llm.name is empty"),
        ("tokens.max_norm_multiple=1", "tokens.max_norm_multiple=1 .* more than 1"),
    ],
)
def test_a_broken_rule_is_named(overrides, says):
    with pytest.raises(ConfigError, match=says) as caught:
        validate(composed(*overrides.split()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("world", "overrides", "says"),
    [
        (2, [], "WORLD_SIZE=2 .* = 0 . 1 x 1 = 1; start 1 ranks, or set topology.shard=2"),
        (3, ["topology.producers=1", "topology.dp=2", "topology.shard=2"], "= 5; .* or set topology.shard=1"),
        (4, ["topology.producers=1", "topology.dp=2"], "= 3; start 3 ranks$"),
    ],
)
def test_a_world_of_another_size_is_named(world, overrides, says):
    with pytest.raises(ConfigError, match=says):
        validate(composed(*overrides), world)


def test_a_world_that_fits_is_accepted():
    validate(composed("topology.producers=1", "topology.shard=2"), 3)


def test_tables_name_fields_that_exist():
    keys = set(flat(composed()))
    assert {*CHOICES, *POSITIVE, *NOT_NEGATIVE} <= keys
    assert {key for fields in UNREAD.values() for key in fields} <= keys


def test_every_open_field_but_the_learning_rate_is_filled_in():
    cfg = resolved()
    assert cfg.optim.lr is None
    filled = "hook name llm.dtype tokens.context sae.num_latents sae.aux_k sae.dead_after optim.warmup"
    for key in filled.split():
        assert get(cfg, key) is not None, key
    assert "auto" not in (cfg.device, cfg.kernels)
    assert (cfg.train_tokens, cfg.checkpoint.every, cfg.eval.tokens) == (2_000_000, 500_000, 500_000)
    validate(cfg)


def test_defaults_follow_the_model_and_the_length_of_the_run():
    cfg = resolved()
    assert (cfg.sae.num_latents, cfg.sae.aux_k, cfg.sae.dead_after) == (16 * 96, 48, 200_000)
    assert (cfg.hook, cfg.tokens.context, cfg.optim.warmup) == ("h.3.attn:in", 256, 0.2)
    long = resolved("train_tokens=1B", "sae.num_latents=64", "precision=float64")
    assert (long.sae.aux_k, long.sae.dead_after, long.llm.dtype) == (32, 10_000_000, "float64")
    assert long.optim.warmup == pytest.approx(1000 / (10**9 // 2048))
    short = dataclasses.replace(FACTS, context=128)
    assert resolved(facts=short).tokens.context == 128


def test_two_widths_and_too_long_a_context_are_refused():
    with pytest.raises(ConfigError, match="sae.num_latents=64 and sae.expansion=2 .*give one"):
        resolved("sae.num_latents=64", "sae.expansion=2")
    with pytest.raises(ConfigError, match="tokens.context=4096 .* at most 1024"):
        resolved("tokens.context=4096")


def test_resolving_twice_changes_nothing():
    cfg = resolved("sae.expansion=2")
    assert resolve(cfg, FACTS, FACTS.width) == cfg


def test_a_grid_leaves_the_dictionary_to_its_members():
    cfg = resolved("grid.k=[8,16]", "sae.expansion=2")
    assert type(cfg) is Resolved and cfg.sae.num_latents is None and cfg.steps == 976
    found = resolved_members(cfg, FACTS, FACTS.width)
    assert [(type(each), each.sae.num_latents, each.sae.k) for each in found] == [
        (Single, 192, 8),
        (Single, 192, 16),
    ]
    with pytest.raises(ConfigError, match="sae.num_latents is null"):
        narrowed(Single, cfg)


def test_the_name_tells_what_matters_and_only_that():
    name = resolved("sae.k=16").name
    assert name.startswith("gpt2-h.3.attn_in-topk-1536-k16-")
    same = [
        ["output=x"],
        ["cluster.partition=gpu"],
        ["resume=auto"],
        ["metrics.every=1"],
        ["topology.shard=2"],
        ["sae.expansion=16"],
    ]
    assert all(resolved("sae.k=16", *each).name == name for each in same)
    other = [["seed=1"], ["optim.lr=1e-3"], ["llm.attn=eager"], ["train_tokens=1M"]]
    assert len({name, *(resolved("sae.k=16", *each).name for each in other)}) == 5
    file = resolve(compose_config(["activations=file", "activations.path=x/my acts.npy"]), None, 96)
    assert file.name.startswith("my_acts-topk-1536-k32-") and file.hook is None
    made = resolve(compose_config(["activations=synthetic", "sae.num_latents=512"]), None, 128)
    assert made.name.startswith("synthetic-512in128-topk-512-k32-") and made.hook is None
    assert resolved("name=mine").name == "mine"


def test_a_transcoder_keeps_both_hooks_in_its_config_and_name():
    facts = dataclasses.replace(FACTS, hook="h.3.mlp:in", target_hook="h.3.mlp:out", target_width=96)
    cfg = resolved("hook=layers.3.mlp:in", "target_hook=layers.3.mlp", "sae.skip=true", facts=facts)
    assert (cfg.hook, cfg.target_hook) == ("h.3.mlp:in", "h.3.mlp:out")
    assert cfg.name.startswith("gpt2-h.3.mlp_in-to-h.3.mlp-topk-")
    validate(cfg)
    same = dataclasses.replace(facts, target_hook="h.3.mlp:in")
    with pytest.raises(ConfigError, match="target_hook=h.3.mlp:in is hook itself"):
        validate(resolved("hook=layers.3.mlp:in", "target_hook=h.3.mlp:in", facts=same))


def test_identity_leaves_out_what_may_change_between_starts():
    keys = {key.split(".")[0] for key in identity(resolved())}
    assert not keys & {"name", "output", "resume", "metrics", "topology", "cluster"}
    assert {"sae", "optim", "seed", "device"} <= keys


@pytest.mark.parametrize(
    "words,scale",
    [
        (["sae=topk"], 0.8),
        (["sae=relu", "sae.num_latents=4096"], 0.125),
        (["sae=gated", "sae.num_latents=256"], 0.8),
        (["sae=relu", "sae.encoder_scale=0.3"], 0.3),
    ],
)
def test_encoders_start_at_what_reconstructs(words, scale):
    assert resolve(compose_config(words), None, 256).sae.encoder_scale == scale
