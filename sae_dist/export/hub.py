"""A folder to be pushed to the Hugging Face Hub: a model card, and one folder per format."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.hub import network_errors
from sae_dist.core.sums import LIST
from sae_dist.core.text import first_line
from sae_dist.export.exported import ExportedSae
from sae_dist.export.formats import FORMATS
from sae_dist.export.saelens import FIRING
from sae_dist.export.sliced import writing

CARD = "README.md"
LOADING = {
    "saelens": (
        "[SAELens](https://github.com/jbloomAus/SAELens)",
        'from sae_lens import SAE\nsae = SAE.from_pretrained("{repo}", "saelens")',
    ),
    "sparsify": (
        "[sparsify](https://github.com/EleutherAI/sparsify)",
        'from sparsify import Sae\nsae = Sae.load_from_hub("{repo}", hookpoint="sparsify")',
    ),
    "dictionary_learning": (
        "[dictionary_learning](https://github.com/saprmarks/dictionary_learning)",
        "from dictionary_learning.utils import load_dictionary\n"
        "from huggingface_hub import snapshot_download\n"
        'folder = snapshot_download("{repo}") + "/dictionary_learning"\n'
        'dictionary, config = load_dictionary(folder, device="cpu")',
    ),
    "circuit_tracer": (
        "[circuit-tracer](https://github.com/safety-research/circuit-tracer), beside the other layers' files",
        "from circuit_tracer.utils.hf_utils import load_transcoder_from_hub\n"
        'transcoders, config = load_transcoder_from_hub("{repo}/circuit_tracer")',
    ),
}
NUMBERS = {
    "fvu": ("fraction of variance unexplained", ".4f"),
    "l0": ("L0", ".1f"),
    "dead_fraction": ("dead latents", ".2%"),
    "ce_clean": ("cross-entropy of the model", ".4f"),
    "ce_sae": ("cross-entropy with the reconstruction spliced in", ".4f"),
    "ce_recovered": ("cross-entropy recovered, against mean ablation", ".2%"),
    "eval_tokens": ("held-out activations", ",d"),
}


def check_repo(repo: str) -> None:
    """Check that a name can be that of a repository on the Hub.

    Raises:
        ConfigError: it cannot.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo_is = False
    else:
        repo_is = repo.count("/") == 1
    if not repo_is:
        raise ConfigError(f"--push {repo} is not a name of a Hub repository; write --push organisation/name")


def make_folder(
    folder: Path,
    export: Path,
    formats: Sequence[str],
    head: ExportedSae,
    summary: Mapping[str, Any],
    repo: str,
) -> None:
    """Fill `folder` with a card and the formats' files: hard links to those in `export`, where possible.

    Args:
        export: the folder in which the formats were written.
        summary: the results of evaluation.

    Raises:
        SaeDistError: a file could not be written.
    """
    with writing(folder):
        for name in formats:
            its = FORMATS[name]
            (folder / name).mkdir(exist_ok=True)
            patterns = (*its.files, FIRING) if name == "saelens" else its.files
            for pattern in patterns:
                for file in (export / its.folder).glob(pattern):
                    for each in (file, file.with_name(f"{file.name}{LIST}")):
                        (folder / name / each.name).unlink(missing_ok=True)
                        if each.is_file():
                            _link(each, folder / name / each.name)
        (folder / CARD).write_text(card(formats, head, summary, repo), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def card(formats: Sequence[str], head: ExportedSae, summary: Mapping[str, Any], repo: str) -> str:
    """Return the model card: Markdown, with the header that the Hub reads."""
    origin = head.metadata
    tags = ["sparse-autoencoder", "transcoder" if head.transcoder else "sae", "interpretability", *formats]
    model = str(origin.get("model_name") or "")
    header = {"library_name": "saelens", "tags": tags}
    # A path is no model of the Hub.
    header |= {"base_model": model} if model and model.count("/") <= 1 and not model.startswith("/") else {}
    kind = head.trained_as or head.kind
    what = f"{'transcoder' if head.transcoder else 'sparse autoencoder'} ({kind})"
    where = {
        "model": Path(model).name if model.startswith("/") else model,
        "hook": origin.get("hook_name"),
        "target": origin.get("hook_name_out"),
        "width": head.width,
        "latents": f"{head.num_latents:,}",
        "k": head.k or origin.get("training_k"),
        "context": origin.get("context_size"),
        "text": origin.get("dataset_path"),
        "activations trained on": f"{origin['training_tokens']:,}" if "training_tokens" in origin else None,
    }
    rows = [f"| {key} | {value} |" for key, value in where.items() if value not in (None, "")]
    measured = [
        f"| {words} | {summary[key]:{how}} |"
        for key, (words, how) in NUMBERS.items()
        if summary.get(key) is not None
    ]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    lines += [
        f"# {repo.split('/')[1]}",
        "",
        f"A {what}, trained by sae_dist.",
        "",
        "| | |",
        "|---|---|",
        *rows,
    ]
    if measured:
        lines += ["", "On text that was not trained on:", "", "| | |", "|---|---|", *measured]
    lines += ["", "Inputs are raw activations: no scaling is left to be done.", ""]
    for name in formats:
        library, code = LOADING[name]
        lines += [f"With {library}:", "", "```python", code.format(repo=repo), "```", ""]
    return "\n".join(lines)


def upload(folder: Path, repo: str) -> str:
    """Push a folder to the Hub, and return the repository's address.

    Raises:
        SaeDistError: the Hub rejected it; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo).repo_url)
    except network_errors() as error:
        reason = first_line(error)
        raise SaeDistError(
            f"{folder} is ready, but the Hub rejected it ({reason}); try again with: "
            f"hf upload {repo} {folder}"
        ) from None
