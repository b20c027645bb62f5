"""What a file may say: every key that can run code or write is listed, and no reader of a file can set it."""

import ast
import dataclasses
import functools
import itertools
import json
import typing
from pathlib import Path

import pytest

from sae_dist.cli import main
from sae_dist.config.plain import fitting
from sae_dist.config.resolve import resolve
from sae_dist.config.rules.cache import settled, settled_keys
from sae_dist.config.run import RunConfig, flat, load_config, recorded_config, save_config, schema
from sae_dist.config.tables import CHOICES
from sae_dist.config.trust import (
    EXECUTES,
    LLM,
    NOTHING,
    TRAINING,
    WRITES,
    check_granted,
    executing,
    granted_by,
    runs_a_command,
    words,
)
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config
from sae_dist.launch.options import tell_defaults

PACKAGE = Path(__file__).parents[3] / "sae_dist"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(9 * ['*' + before])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
RUNS = {
    "llm.trust_remote_code": True,
    "activations.path": "pipe:touch marker; cat {}",
    "cluster.setup": ["touch marker"],
    "cluster.sbatch": ["--prolog=touch"],
    "cluster.srun": ["--task-prolog=touch"],
    "cluster.command": "touch marker",
    "cluster.producer.sbatch": ["--prolog=touch"],
}
"""A value of each key that would run something."""
READ = {
    *("llm.name", "tokens.path", "tokens.dataset", "tokens.subset", "tokens.data_files", "tokens.split"),
    *("tokens.column", "tokens.roles", "activations.key", "eval.corpus", "eval.probes", "sae.start"),
}
"""Keys whose text names what is read as data; none of it is run."""
SAID = {
    *(
        "hook",
        "target_hook",
        "grid.hook",
        "grid.target_hook",
        "activations.names",
        "metrics.project",
        "metrics.group",
    ),
    *("cluster.account", "cluster.partition", "cluster.qos", "cluster.time", "cluster.mem"),
    *("cluster.producer.partition", "cluster.producer.mem"),
}
"""Keys whose text is a name or a word that is compared, checked against a pattern, or shown."""
COUNTS = {
    *("train_tokens", "sae.dead_after", "checkpoint.every", "checkpoint.keep_every", "eval.tokens"),
    *("eval.ce_tokens", "eval.every", "eval.rows", "eval.ce"),
}
SWITCHES = {
    *("llm.packed", "llm.offload", "llm.compile", "llm.random_init", "tokens.streaming", "sae.skip"),
    *("metrics.console", "metrics.upload", "checkpoint.background", "eval.baselines", "eval.absorption"),
    *("eval.controls", "cluster.requeue", "activations.directions", "private"),
}
"""Yes or no, of our own code; and numbers in a list without a type."""


def leaves():
    return {key: kind for key, kind in schema().items() if not dataclasses.is_dataclass(kind)}


def kinds(hint):
    found = {hint, *typing.get_args(hint)}
    return found | {item for each in found for item in typing.get_args(each)}


def test_every_key_is_listed_by_what_it_can_do():
    """A new key with text, a switch, or without a type has to be put into one of the lists."""
    wordy = {key for key, hint in leaves().items() if kinds(hint) & {str, bool, typing.Any}}
    listed = [set(EXECUTES), set(WRITES), set(CHOICES), READ, SAID, COUNTS, SWITCHES]
    assert sum(map(len, listed)) == len(set.union(*listed)), "a key is listed twice"
    assert wordy == set.union(*listed)
    assert set(RUNS) == set(EXECUTES)


@pytest.mark.parametrize("key", EXECUTES)
def test_the_neutral_value_is_the_schemas_and_runs_nothing(key):
    each, default = EXECUTES[key], flat(RunConfig())[key]
    assert each.neutral == default and not each.runs(default) and each.runs(RUNS[key])
    fitting(RUNS[key], schema()[key], key)


def test_what_is_a_command():
    for path in ("pipe:x", " pipe: x", "PIPE:x", "a.tar::pipe:x"):
        assert runs_a_command(path)
    for path in ("s3://b/c", "/data/pipe", "pipeline/x", None, "file:///pipe"):
        assert not runs_a_command(path)


def run_of(folder, **changes):
    """A frozen run, with values that the command of its owner had."""
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind, cfg.sae.num_latents, cfg.optim.kind, cfg.llm.name = "topk", 8, "adam", "embedded"
    cfg.tokens.kind, cfg.activations.kind, cfg.llm.dtype = "text", "llm", "float32"
    for key, value in changes.items():
        *sections, name = key.split(".")
        part = cfg
        for section in sections:
            part = getattr(part, section)
        setattr(part, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(resolve(cfg, None, 8), folder / "config.yaml")
    return folder / "config.yaml"


@pytest.mark.parametrize("key", EXECUTES)
def test_a_frozen_config_runs_only_what_is_granted_word_for_word(key, tmp_path):
    path = run_of(tmp_path, **{key: RUNS[key]})
    assert flat(load_config(path))[key] == EXECUTES[key].neutral
    other = {key: False if RUNS[key] is True else "pipe:other"}
    assert flat(load_config(path, other))[key] == EXECUTES[key].neutral
    assert flat(load_config(path, {key: RUNS[key]}))[key] == RUNS[key]
    assert flat(recorded_config(path))[key] == RUNS[key]
    assert executing(load_config(path)) == {}


@pytest.mark.parametrize("command", ["resume", "eval", "report", "export"])
def test_a_command_on_a_run_folder_names_the_word_to_add(command, tmp_path, capsys):
    run_of(tmp_path / "run", **{"llm.trust_remote_code": True})
    assert main([command, str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "asks for llm.trust_remote_code, which runs code" in said and said.count("\n") == 1
    assert said.endswith("add the word to your command: llm.trust_remote_code=true\n")


def test_a_pipe_is_run_on_resume_only_where_it_is_granted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "run", **{"activations.kind": "cache", "activations.path": "pipe:touch marker"})
    assert main(["resume", "run"]) == 2
    assert "add the word to your command: 'activations.path=pipe:touch marker'" in capsys.readouterr().err
    assert main(["resume", "run", "activations.path=pipe:cat {}"]) == 2
    assert "only what is granted word for word runs" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_the_words_of_a_command_come_back_as_what_they_grant():
    granted = {"llm.trust_remote_code": True, "activations.path": "pipe:a 'b' {}"}
    assert granted_by(["run", *words(granted)]) == (["run"], granted)
    assert granted_by(["activations.path='pipe:x'"])[1] == {"activations.path": "pipe:x"}
    assert granted_by(["eval.tokens=5", "llm.trust_remote_code"])[0] == [
        "eval.tokens=5",
        "llm.trust_remote_code",
    ]
    with pytest.raises(ConfigError, match="takes true or false"):
        granted_by(["llm.trust_remote_code=yes"])


def test_a_value_that_is_not_granted_is_named_whatever_the_command_uses(tmp_path):
    cfg = recorded_config(run_of(tmp_path, **RUNS))
    check_granted(cfg, {"llm.trust_remote_code": True}, tmp_path, LLM)
    for keys in (LLM, TRAINING):
        with pytest.raises(ConfigError, match="llm.trust_remote_code=true"):
            check_granted(cfg, NOTHING, tmp_path, keys)


def settings():
    values = flat(RunConfig())
    found = {key: values[key] for key in settled_keys()}
    return found | {"llm.name": "org/lm", "tokens.kind": "text", "hook": "h.1:out", "shuffle.lanes": 3}


@pytest.mark.parametrize("key", sorted({*EXECUTES, *WRITES, "metrics.project", "sae.start", "no.such"}))
def test_a_manifest_sets_only_what_it_settles(key):
    assert settled(settings())["shuffle.lanes"] == 3
    with pytest.raises(ValueError, match=f"it sets {key}, which no manifest settles"):
        settled(settings() | {key: RUNS.get(key, "x")})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("shuffle.lanes", 10**21, "too large"),
        ("shuffle.lanes", 1e21, "wrong type"),
        ("shuffle.lanes", True, "wrong type"),
        ("shuffle.lanes", -1, "greater than 0"),
        ("shuffle.chunk_rows", 2**40, "too large"),
        ("tokens.context", "many", "wrong type"),
        ("tokens.roles", [1], "wrong type"),
        ("tokens.spare", float("nan"), "no finite number"),
        ("llm.attn", "org/kernels", "is not one of"),
        ("llm.name", "a\x1b[31m", "control character"),
        ("hook", None, "hook is missing"),
    ],
)
def test_a_manifests_values_have_the_schemas_types_and_bounds(key, value, says):
    with pytest.raises(ValueError, match=says):
        settled(settings() | {key: value})


def conf(folder, name, text):
    file = folder / "conf" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def as_yaml(key, value):
    """A file of a group that sets one key, whatever its group."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return "# @package _global_\n" + json.dumps(value)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        *(("local/default", key) for key in EXECUTES),
        *itertools.product(("experiment/mine", "cluster/mine"), ("llm.trust_remote_code", "cluster.setup")),
    ],
)
def test_files_of_the_working_folder_run_nothing(file, key, tmp_path, monkeypatch):
    """A job's lines may be in the file that the command names by cluster=; nothing else anywhere."""
    monkeypatch.chdir(tmp_path)
    conf(tmp_path, f"{file}.yaml", as_yaml(key, RUNS[key]))
    group = file.split("/")[0]
    named = [f"{group}=mine"] if group != "local" else []
    if group == key.split(".")[0] == "cluster":
        assert executing(compose_config(named)) == {key: RUNS[key]}
        return
    with pytest.raises(ConfigError, match=f"a file of conf/ sets {key}, which runs code"):
        compose_config(named)


def test_own_defaults_are_said_aloud(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    conf(tmp_path, "local/default.yaml", "# @package _global_\nseed: 3\nsae:\n  k: 7\n")
    assert compose_config([]).sae.k == 7
    tell_defaults()
    assert capsys.readouterr().err == "conf/local/default.yaml is obeyed: it sets seed, sae.k\n"
    assert compose_config(["llm.trust_remote_code=true"]).llm.trust_remote_code


def test_own_files_may_have_aliases(tmp_path, monkeypatch):
    """Written by the one who works here; a bomb of them is still refused."""
    monkeypatch.chdir(tmp_path)
    conf(tmp_path, "cluster/mine.yaml", "mem: &mem 8G\nproducer: {mem: *mem}\n")
    assert compose_config(["cluster=mine"]).cluster.producer.mem == "8G"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrics: {project: '${oc.env:HOME}'}", r"has \$\{oc.env:\.\.\.\}, which reads more"),
        (BOMB, "more than 300000 values, or nested more than 16 deep"),
        ("a: &a [*a]\n", "more than 300000 values, or nested more than 16 deep"),
        ("a: " + "[" * 200_000, "nested more than 16 deep"),
        ("seed: " + "9" * 5000, "more than 300000 values"),
    ],
)
def test_own_defaults_read_no_environment_and_hold_no_bomb(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conf(tmp_path, "local/default.yaml", f"# @package _global_\n{text}")
    with pytest.raises(ConfigError, match=says):
        compose_config([])


def test_the_written_record_is_read_where_nothing_runs():
    """`recorded_config` hands out what is not granted: to compare it, and to write it again."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "recorded_config" in path.read_text()
    }
    assert users == {"config/run.py", "interpret/load.py", "launch/freeze.py", "launch/run.py"}


RUNNERS = {
    "subprocess": "bench core/process core/slurm_queue launch/provenance launch/spawn launch/submit "
    "kernels/triton_cubins",
    "gopen": "transport/cache transport/cache_manifest",
    "pickle": "core/parsing export/state",
    "importlib": "__init__ bench commands/main config/triton config/validate dictionary/base "
    "graph/formats/neuronpedia kernels/choose launch/provenance launch/settle llm/hub",
}


@functools.cache
def trees():
    """Every file of the package, by its path there, as what it holds."""
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): [*ast.walk(ast.parse(path.read_text()))]
        for path in PACKAGE.rglob("*.py")
    }


def names_in(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("name", RUNNERS)
def test_few_files_can_run_anything(name):
    """A new one has to be looked at: what reaches it, and who may say so."""
    found = {place for place, nodes in trees().items() if name in names_in(nodes)}
    allowed = RUNNERS[name].split()
    assert [each for each in found if not any(each == a or each.startswith(f"{a}/") for a in allowed)] == []


def test_nothing_is_run_by_a_name_from_a_file():
    for path, nodes in trees().items():
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            called, keys = (
                ast.unparse(node.func),
                {each.arg: ast.unparse(each.value) for each in node.keywords},
            )
            assert called not in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"), (
                path
            )
            assert keys.get("shell", "False") == "False", path
            assert keys.get("trust_remote_code", "") != "True", path
            if called == "torch.load":
                assert keys.get("weights_only") == "True", path
            if called in ("np.load", "numpy.load"):
                assert keys.get("allow_pickle", "False") == "False", path
