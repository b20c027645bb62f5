"""What people who train ran into elsewhere: a case returns what happened, and fails where that is wrong."""

import json
import shutil
import signal
import time
from collections.abc import Callable

import numpy as np
import transformers

from tests.helpers.architectures import try_architecture
from tests.helpers.cases_desk import SHORT, TINY, Desk
from tests.helpers.warm import Command, warm

FILES = ["activations=file", "activations.path=acts.npy", "sae.num_latents=64", *SHORT[2:]]


def own_number_of_layers(desk: Desk) -> str:
    """Rows are the whole model's where it computes with its number of layers."""
    found = [try_architecture(kind, desk.folder / f"try_{kind}") for kind in ("esmc", "gemma4_text")]
    assert all(each.trains and each.apart < 1e-5 for each in found)
    return ", ".join(f"{each.kind}: rows differ by {each.apart:.0e}" for each in found)


def padded_ids(desk: Desk) -> str:
    """Padding and special tokens are no activations, with an attention mask and without."""
    from datasets import Dataset

    random = np.random.default_rng(0)
    lengths = random.integers(10, 60, 1500)
    ids = [[0, *random.integers(10, 2000, n).tolist(), *[1] * (63 - int(n))] for n in lengths]
    masks = [[1] * (int(n) + 1) + [0] * (63 - int(n)) for n in lengths]
    Dataset.from_dict({"input_ids": ids, "attention_mask": masks}).to_parquet(desk.folder / "ids.parquet")
    words = ["tokens=hf", "tokens.dataset=parquet", "tokens.data_files=ids.parquet"]
    desk.trained("padded", *words, "tokens.column=input_ids")
    last = desk.rows("padded")[-1]
    left_out = last["stream/masked_tokens"] + last["stream/special_tokens"]
    assert left_out > 2000
    return f"{left_out:.0f} padding and special tokens left out, counted"


def texts_that_change(desk: Desk) -> str:
    """A run goes on with the data that it was begun with only."""
    folder = desk.texts("changing")
    words = ["train", *TINY, "train_tokens=400k", "name=changed", f"tokens.path={folder}", "eval.tokens=0"]
    process = Command(desk.folder, *words)
    until = time.monotonic() + 60
    while not (desk.run("changed") / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    (folder / "more.jsonl").write_text('{"text": "one more document"}\n')
    said = desk.refused(*words, "resume=auto")
    assert "begun with other data" in said and "more.jsonl" in said
    return said


def short_documents_with_a_sink(desk: Desk) -> str:
    """Rows that repeat because too many are outliers are said aloud, with the remedy."""

    def sink(model):
        model.transformer.wpe.weight[1] *= 2000

    name = desk.edited("gpt2", "sink", sink)
    said = desk.trained("sink_run", f"llm.name={name}", f"tokens.path={desk.texts()}", "metrics.every=1")
    share = desk.rows("sink_run")[-1]["stream/repeated_rows"] / 8192
    assert share < 0.01 or "repeats" in said and "tokens.spare" in said
    return f"{share:.1%} of the rows are repeats" + (", said" if share >= 0.01 else "")


def encodings(desk: Desk) -> str:
    """A byte order mark is no text, and every file's head is looked at."""
    folder = desk.folder / "encodings"
    shutil.copytree(desk.texts(), folder)
    lines = (folder / "texts.jsonl").read_bytes()
    (folder / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    desk.trained("marked", f"tokens.path={folder}")
    (folder / "z_latin.jsonl").write_bytes('{"text": "Übergröße"}\n'.encode("latin-1"))
    said = desk.refused("train", *SHORT, "name=latin", f"tokens.path={folder}")
    assert "z_latin.jsonl" in said
    return said


def links(desk: Desk) -> str:
    """Links inside a folder of texts are followed, in a loop too."""
    folder = desk.folder / "linked"
    folder.mkdir()
    (folder / "there").symlink_to(desk.texts())
    (folder / "loop").symlink_to(folder)
    desk.trained("linked_run", f"tokens.path={folder}")
    return "trained on what the link leads to"


def second_owner(desk: Desk) -> str:
    """The same command again is refused while the first lives, and the first ends well."""
    words = ["train", *TINY, "train_tokens=200k", "name=owned", "eval.tokens=0"]
    first = Command(desk.folder, *words)
    until = time.monotonic() + 60
    while not (desk.run("owned") / "checkpoints" / "latest").exists() and time.monotonic() < until:
        time.sleep(0.05)
    said = desk.refused(*words, "resume=auto")
    first.communicate()
    assert first.poll() == 0 and desk.rows("owned")[-1]["tokens"] >= 199_000
    assert f"is being trained by pid {first.pid}" in said
    return said


def no_language_head(desk: Desk) -> str:
    """A model without a head is evaluated but for cross-entropy, which is said before the first step."""
    said = desk.trained("headless_run", f"llm.name={desk.without_head()}", f"tokens.path={desk.texts()}")
    summary = desk.summary("headless_run")
    assert summary["status"] == "finished" and summary["fvu"] > 0 and summary["ce_clean"] is None
    before = said.partition("\nstep ")[0]
    assert "no language head" in before
    return next(line for line in before.splitlines() if "no language head" in line)


def lone_surrogate(desk: Desk) -> str:
    """Half of a surrogate pair in a line ends no run."""
    folder = desk.folder / "surrogate"
    shutil.copytree(desk.texts(), folder)
    with open(folder / "texts.jsonl", "a") as file:
        file.write('{"text": "half a pair \\ud83d and more words"}\n')
    desk.trained("surrogate_run", f"tokens.path={folder}", "train_tokens=40k")
    return "trained"


def tokenizer_larger_than_the_model(desk: Desk) -> str:
    """A tokenizer with more tokens than the model has is refused before the first step."""
    folder = desk.folder / "fewer"
    shutil.copytree(desk.folder / desk.model("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    small = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config | {"vocab_size": 900})
    )
    small.save_pretrained(folder)
    said = desk.refused("train", *SHORT, "name=fewer_run", "llm.name=fewer", f"tokens.path={desk.texts()}")
    assert "900" in said
    return said


def huge_rows_in_a_file(desk: Desk) -> str:
    """A few huge rows of a file are left out, counted, and do not set the scale."""
    values = desk.array("acts.npy")
    values[::2000] *= 1e4
    np.save(desk.folder / "acts.npy", values)
    desk.trained("huge", *FILES)
    left_out, fvu = desk.rows("huge")[-1]["stream/excluded_rows"], desk.summary("huge")["fvu"]
    assert left_out > 0 and fvu < 0.6
    return f"{left_out:.0f} rows left out, FVU {fvu:.2f}"


def a_large_constant(desk: Desk) -> str:
    """Where the mean carries most of the norm, that and the remedy are said before the first step."""
    values = desk.array("acts.npy")
    values[:, 0] += 40 * values.std()
    np.save(desk.folder / "acts.npy", values)
    said = desk.trained("constant", *FILES)
    line = next(line for line in said.partition("\nstep ")[0].splitlines() if "centred" in line)
    return line.strip()


def one_row_in_a_batch(desk: Desk) -> str:
    """A batch of one row has no variance, which is said as it is."""
    said = desk.refused("train", *SHORT, "batch=1", "name=one")
    assert "variance" in said
    return said


def evaluated_from_another_folder(desk: Desk) -> str:
    """Relative paths are frozen as absolute ones."""
    desk.trained("relative", f"llm.name={desk.model('llama')}", f"tokens.path={desk.texts().name}")
    elsewhere = desk.folder / "elsewhere"
    elsewhere.mkdir()
    done = warm(elsewhere, "eval", str(desk.run("relative")), "eval.tokens=1k", "eval.ce_tokens=1k")
    assert done.returncode == 0, done.stderr[-500:]
    return "evaluated"


def a_small_activation_file(desk: Desk) -> str:
    """A pass over a small file leaves no chunk out, and passes are said."""
    desk.array("acts.npy", rows=6000)
    said = desk.trained("small_file", *FILES, "train_tokens=40k")
    line = next(line for line in said.splitlines() if "passes over the data" in line)
    return line


def a_router(desk: Desk) -> str:
    """A module that gives one vector per token without the axis of the batch can be hooked."""
    words = [f"llm.name={desk.model('qwen3_moe')}", "hook=layers.1.mlp.gate", f"tokens.path={desk.texts()}"]
    desk.trained("router", *words, "sae.num_latents=32", "sae.k=2")
    return f"FVU {desk.summary('router')['fvu']:.2f}"


CASES: list[Callable[[Desk], str]] = [
    own_number_of_layers,
    padded_ids,
    texts_that_change,
    short_documents_with_a_sink,
    encodings,
    links,
    second_owner,
    no_language_head,
    lone_surrogate,
    tokenizer_larger_than_the_model,
    huge_rows_in_a_file,
    a_large_constant,
    one_row_in_a_batch,
    evaluated_from_another_folder,
    a_small_activation_file,
    a_router,
]
