"""The readers that are fuzzed: how a sound input of each is made, and what reads it."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.labels import REVIEWS, Labels
from sae_dist.checkpoint.read import StoredRows, load_full
from sae_dist.checkpoint.storage import PLACES, damage, read_scalars, seal
from sae_dist.config.run import load_config, save_config
from sae_dist.config.sections import LlmConfig
from sae_dist.core.claims import Record
from sae_dist.core.errors import CheckpointError
from sae_dist.core.run_folder import read_summary
from sae_dist.core.sums import LIST, OPEN, check_listed, checksum, sealed
from sae_dist.evaluation.probes.labels import read_labelled
from sae_dist.evaluation.report.files import read_run
from sae_dist.export.formats import FORMATS
from sae_dist.export.importing import Imported
from sae_dist.export.saelens import export_firing_rates, load_firing_rates
from sae_dist.export.statistics import CodeStatistics, load_statistics
from sae_dist.graph.graph import Checks, Graph, Layer, Node
from sae_dist.graph.store import Store
from sae_dist.interpret.study.prompts import read_prompts
from sae_dist.launch.identity import differences
from sae_dist.llm.config_file import check_ahead
from sae_dist.llm.hub import _check_index
from sae_dist.llm.whole import stored_names
from sae_dist.tokens.documents import Document
from sae_dist.tokens.kept import ForeignIds
from sae_dist.tokens.shards import ShardCorpus
from sae_dist.tokens.text_files import text_files
from sae_dist.transport.array_file import find_arrays
from sae_dist.transport.cache import CachedChunkSource
from sae_dist.transport.cache_manifest import MANIFEST, read_manifest
from tests.helpers.described import described
from tests.unit.config.test_config_rules import resolved
from tests.unit.export.test_export_formats import F, make
from tests.unit.export.test_export_scopes import QWEN, save_qwen, save_scope, scope
from tests.unit.tokens.test_tokens_sources import npy, write_tar
from tests.unit.transport.test_cache import make as make_cache

ROWS, D = 64, 8


def _nothing(folder: Path, draw: random.Random) -> None:
    """Leave the mutated input as it is."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Attributes:
        make: writes a sound input into a folder.
        files: patterns of the files that are mutated.
        read: reads the folder.
        after: puts checksums right behind a mutation, at times.
    """

    make: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    after: Callable[[Path, random.Random], Any] = _nothing


def _arrays(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)
    np.save(folder / "a.npy", rows)
    np.save(folder / "b.npy", np.asfortranarray(rows))


def _scaled(folder: Path) -> None:
    rows = np.arange(ROWS * D, dtype=np.int8).reshape(ROWS, D)
    save_arrays({"rows": rows, "scale": np.ones((ROWS, 1), np.float32)}, folder / "a.safetensors")


def _read_arrays(folder: Path) -> None:
    for each in find_arrays(str(folder), None):
        each.read(0, each.rows.shape[0])


def _shards(folder: Path) -> None:
    samples = {f"{n:03d}.ids.npy": npy(range(1, 20)) for n in range(2)}
    samples |= {"002.ids.json": b"[1, 2, 3, 4]", "002.mask.json": b"[1, 1, 0, 1]"}
    write_tar(folder / "a.tar", samples)


def _read_shards(folder: Path) -> None:
    corpus = ShardCorpus(str(folder / "a.tar"), 100)
    for number in range(len(corpus)):
        try:
            corpus.read(number)
        except ForeignIds:
            corpus.where(number)


def _sealed_again(folder: Path, draw: random.Random) -> None:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if draw.random() < 0.9:
            path.write_text(sealed(json.dumps(content | {"sha256": OPEN})))
    except (ValueError, TypeError, AssertionError, RecursionError):
        pass


def _read_chunks(folder: Path) -> None:
    """Read chunks of shards whose checksums are right, whatever is in them."""
    manifest = read_manifest(str(folder))
    shards = [replace(each, sha256=checksum(folder / each.name)["sha256"]) for each in manifest.shards]
    source = CachedChunkSource(str(folder), replace(manifest, shards=tuple(shards)), dtype=torch.float32)
    for lane in range(manifest.lanes):
        list(source.open(lane, None))


def _checkpoint(folder: Path) -> None:
    tensors = {"W_enc": torch.ones(F, D), "b_dec": torch.ones(D)}
    places = {name: {"saved_offsets": [0] * each.dim()} for name, each in tensors.items()}
    file = folder / "rows_00000.safetensors"
    save_file(tensors, file, metadata={PLACES: json.dumps(places), "format": "pt"})
    seal(folder, json.dumps({"step": 1, "tokens": 5, "scales": [0.5]}), {file.name: checksum(file)})


def _read_checkpoint(folder: Path) -> None:
    if problem := damage(folder):
        raise CheckpointError(problem)
    read_scalars(folder)
    StoredRows(folder).rows("W_enc", torch.arange(F))
    load_full(folder, ["b_dec"])


def _checkpoint_again(folder: Path, draw: random.Random) -> None:
    file = folder / "rows_00000.safetensors"
    seal(folder, (folder / "state.json").read_bytes().decode("latin1"), {file.name: checksum(file)})


def _run(folder: Path) -> None:
    save_config(resolved(), folder / "config.yaml")
    (folder / "summary.json").write_text('{"status": "finished", "fvu": 0.5, "l0": 8.0, "tokens": 500}')
    (folder / "provenance.json").write_text('{"time": "2026", "command": "sae-dist train", "diff": null}')
    (folder / "eval.json").write_text('{"run": "a", "full": false, "fvu": 0.5}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 2, "loss/total": 0.5}\n' * 3)


def _read_run(folder: Path) -> None:
    load_config(folder / "config.yaml")
    read_summary(folder)
    read_run(folder)


def _texts(folder: Path) -> None:
    (folder / "probes.jsonl").write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n' * 3)
    (folder / "prompts.jsonl").write_text('{"prompt": "one", "target": "two"}\n' * 3)
    (folder / "prompts.txt").write_text("one\ntwo\n")
    (folder / "texts.jsonl").write_text('{"text": "one"}\n')


def _read_texts(folder: Path) -> None:
    for path in text_files(folder / "texts.jsonl", "tokens.path=x"):
        Document("texts", path, 0, path.stat().st_size).text()


def _model(folder: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _read_model(folder: Path) -> None:
    check_ahead(LlmConfig(name=str(folder)), {"hook": "layers.1"}, 32)
    _check_index("a", folder)
    stored_names(folder)


def _record(folder: Path) -> None:
    (folder / ".owner.1").write_bytes(Record.mine("training").to_bytes(400))


def _export(name: str, kind: str, form: str = "autoencoder", **changes: Any) -> Reader:
    """Return the reader of an export, without the checksums that would refuse every mutation."""

    def write(folder: Path) -> None:
        FORMATS[name].write(folder, make(kind, form))
        for each in folder.glob(f"*{LIST}"):
            each.unlink()
        if changes:
            config = json.loads((folder / FORMATS[name].files[0]).read_text()) | changes
            config = {key: value for key, value in config.items() if value is not None}
            (folder / FORMATS[name].files[0]).write_text(json.dumps(config))

    return Reader(write, FORMATS[name].files, lambda folder: Imported.read(folder, name).says())


def _listed(folder: Path) -> None:
    FORMATS["saelens"].write(folder, make("topk"))


def _measured(folder: Path) -> None:
    _listed(folder)
    export_firing_rates(folder, torch.rand(F))
    CodeStatistics(*(torch.rand(F) for _ in range(4)), threshold=0.5, rows=100).save(folder)
    for each in folder.glob(f"*{LIST}"):
        each.unlink()


def _read_measured(folder: Path) -> None:
    load_firing_rates(folder)
    load_statistics(folder, F)


def _scope_2(folder: Path) -> None:
    save_file(scope(make("jumprelu"), lower=True), folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "m", "hf_hook_point_in": "model.layers.5.output"}
    (folder / "config.json").write_text(json.dumps(config))


BEFORE_6 = {
    "metadata": None,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 5},
    "hook_point": "h",
}


def _atlas(folder: Path) -> None:
    described(folder / "atlas", 256, documents=8)
    Labels(folder / "atlas" / REVIEWS, 256).set(3, "a label")


def _read_atlas(folder: Path) -> None:
    atlas = Atlas.open(folder / "atlas")
    for latent in (0, 3, 255):
        atlas[latent].to_html()
    atlas.find(token=2, top=3)
    atlas.find(token=2, top=3, exact=False)
    atlas.find(together=3, top=3)


def _ask_atlas(folder: Path) -> None:
    query = "select count(*), sum(code), max(len(tokens)) from postings join latents using (latent)"
    Atlas.open(folder / "atlas").sql(query, memory="200MiB", threads=1, seconds=1.5)


def _read_labels(folder: Path) -> None:
    labels = Labels(folder / "atlas" / REVIEWS, 256)
    labels.of([3]), labels.search("label"), labels.all(), labels.set(3, "another")


def _graph(folder: Path) -> None:
    nodes = (
        Node("t_0", "token", -1, 0, token=5, influence=0.25),
        Node("f_0_0_3", "latent", 0, 0, 3, None, 1.5, 0.5),
        Node("e_0_0", "error", 0, 0, influence=0.25),
        Node("l_7", "logit", 1, 0, token=7, influence=1.0, probability=0.5),
    )
    Graph(
        nodes=nodes,
        rows=torch.tensor([1, 3, 3]),
        columns=torch.tensor([0, 1, 2]),
        weights=torch.tensor([1.0, 0.5, -0.25]),
        constants=torch.tensor([0.0, 0.5, 0.0, 0.1]),
        total=torch.tensor([[0.3], [0.5], [-0.25], [0.35]]),
        values=torch.tensor([0.0, 1.5, 0.0, 0.35]),
        ids=(5,),
        tokens=("a",),
        targets=("b",),
        prompt="a",
        model="m",
        set_name="s",
        layers=(Layer("layers.0.mlp:out", "layers.0.mlp:in", "f", "topk", 8),),
        error_share=0.5,
        unfollowed=0.0,
        influence_sum=1.0,
        replacement_score=0.5,
        completeness=0.5,
        latents=(1, 1, 1),
        checks=Checks(0.0, 0.0, 0.0, 0.0, 1e-4, "float32", 2, 3, 1),
        settings={"batch": 64},
    ).save(folder)
    store = Store(folder, 3, torch.float32)
    store.write(0, torch.tensor([1, 0]), torch.tensor([[0.5, -0.25, 0.0], [0.0, 0.0, 1.0]]))


def _read_graph(folder: Path) -> None:
    graph = Graph.load(folder)
    repr(graph)
    ids = [node.id for node in graph.nodes]
    graph.effect(ids)
    if graph.logits:
        graph.effect_on(ids, [graph.logits[0].id])


def _read_rows(folder: Path) -> None:
    store = Store(folder, 3, torch.float32)
    if store.has(0, torch.tensor([1, 0])):
        store.read(0)


READERS = {
    "graph": Reader(_graph, ("graph.json", "graph.safetensors"), _read_graph),
    "graph_rows": Reader(_graph, ("rows-*.safetensors",), _read_rows),
    "atlas": Reader(_atlas, ("atlas/*.json", "atlas/*.parquet", "atlas/*/*.parquet"), _read_atlas),
    "atlas_sql": Reader(_atlas, ("atlas/postings/*.parquet", "atlas/latents/*.parquet"), _ask_atlas),
    "atlas_labels": Reader(_atlas, (f"atlas/{REVIEWS}",), _read_labels),
    "npy": Reader(_arrays, ("*.npy",), _read_arrays),
    "safetensors": Reader(_scaled, ("*.safetensors",), _read_arrays),
    "token_shards": Reader(_shards, ("*.tar",), _read_shards),
    "cache_manifest": Reader(make_cache, (MANIFEST,), lambda f: read_manifest(str(f)), _sealed_again),
    "cache_chunks": Reader(make_cache, ("shards/*.tar",), _read_chunks),
    "checkpoint": Reader(_checkpoint, ("*.safetensors", "state.json"), _read_checkpoint, _checkpoint_again),
    "checkpoint_list": Reader(_checkpoint, ("checksums.json",), _read_checkpoint),
    "run_folder": Reader(_run, ("*.json", "*.yaml", "*.jsonl"), _read_run),
    "probes": Reader(_texts, ("probes.jsonl",), lambda f: read_labelled(str(f / "probes.jsonl"))),
    "prompts": Reader(_texts, ("prompts.jsonl",), lambda f: read_prompts(f / "prompts.jsonl", None, None)),
    "plain_prompts": Reader(_texts, ("prompts.txt",), lambda f: read_prompts(f / "prompts.txt", None, None)),
    "texts": Reader(_texts, ("texts.jsonl",), _read_texts),
    "model_config": Reader(_model, ("*.json",), _read_model),
    "identity_of_data": Reader(
        lambda f: (f / "data.json").write_text('{"a.txt": [5, "0123"]}'),
        ("data.json",),
        lambda f: differences(f / "data.json", {"a.txt": [5, "0123"]}),
    ),
    "claims": Reader(_record, (".owner.*",), lambda f: Record.from_bytes((f / ".owner.1").read_bytes())),
    "lists_of_checksums": Reader(_listed, ("*",), lambda f: check_listed(f, FORMATS["saelens"].files)),
    "measured_codes": Reader(_measured, ("sparsity.safetensors", "codes.safetensors"), _read_measured),
    "SAELens": _export("saelens", "topk"),
    "SAELens_jumprelu": _export("saelens", "matryoshka"),
    "SAELens_gated": _export("saelens", "gated", "skip"),
    "SAELens_before_6": _export("saelens", "topk", **BEFORE_6),
    "sparsify": _export("sparsify", "topk", "skip"),
    "dictionary_learning": _export("dictionary_learning", "matryoshka"),
    "dictionary_learning_relu": _export("dictionary_learning", "relu"),
    "circuit_tracer": _export("circuit_tracer", "jumprelu", "skip"),
    "gemma_scope": Reader(
        lambda f: save_scope(f, make("jumprelu")), ("*.npz",), lambda f: Imported.read(f, "gemma_scope")
    ),
    "gemma_scope_2": Reader(
        _scope_2, ("params.safetensors", "config.json"), lambda f: Imported.read(f, "gemma_scope_2")
    ),
    "qwen_scope": Reader(
        lambda f: save_qwen(f / QWEN, make("topk")), ("*/*.pt",), lambda f: Imported.read(f / QWEN, None)
    ),
}
KEPT = {
    "token_shards": (5308, 9111),
    "gemma_scope": (7508,),
    "dictionary_learning": (8763,),
    "cache_manifest": (556,),
    "checkpoint_list": (104, 766, 1910),
    "prompts": (291,),
    "measured_codes": (1096,),
    "model_config": (143,),
    "SAELens": (264, 751),
    "SAELens_jumprelu": (775,),
    "SAELens_gated": (1616,),
    "sparsify": (2296,),
    "dictionary_learning_relu": (22,),
    "circuit_tracer": (1058, 1592),
    "gemma_scope_2": (1179,),
}
"""Inputs that were read wrongly once, by their numbers; they change with `mutated`."""
