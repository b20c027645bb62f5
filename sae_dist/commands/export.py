"""The command `sae-dist export`: a run's newest checkpoint, in the formats of other libraries."""

from pathlib import Path

from sae_dist.config.grid import run_of, single
from sae_dist.config.run import granted_config
from sae_dist.config.trust import LLM, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.owner import owning
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.text import show
from sae_dist.export.names import FILES, READ_ONLY
from sae_dist.launch.arguments import Parser

WRITTEN = [name for name in FILES if name not in READ_ONLY]


def help_text() -> str:
    """Return the help text."""
    return """\
Writes the newest checkpoint of a run into RUN/export, scaling folded in, float32, a few latents at a time: a
dictionary larger than this machine's memory can be exported. An unfinished run is exported as it stands.

  --format saelens              RUN/export: sae_weights.safetensors, cfg.json   (the default)
  --format sparsify             RUN/export/sparsify: sae.safetensors, cfg.json; topk only
  --format dictionary_learning  RUN/export/dictionary_learning: ae.pt, config.json; autoencoders only
  --format circuit_tracer       RUN/export/circuit_tracer: config.yaml, layer_<n>.safetensors; transcoders
                                of a layer's mlp, without a k
                                several formats: --format again
                                A grid over hooks is exported as a set, GRID/export/FORMAT: a folder for each
                                place within, of circuit_tracer a file for each layer
  --push ORG/REPO               write these and a model card into RUN/hub, and upload that to the Hugging Face
                                Hub, with the token that huggingface_hub finds (hf auth login)
  --folder-only                 with --push: build the repository's folder without uploading
  llm.trust_remote_code=true    run the code that the run's model brings along; a run folder does not grant it

Examples:
  sae-dist export outputs/my_run
  sae-dist export outputs/my_run --format saelens --format sparsify
  sae-dist export outputs/my_run --push me/my-dictionary
  sae-dist export outputs/my_grid --format circuit_tracer
"""


def run(arguments: list[str]) -> None:
    """Export a run, or a grid as a set; with --push publish a run.

    Raises:
        SaeDistError: see `train.export.export_run`, and `export.hub.push`.
    """
    parser = Parser("sae-dist export", add_help=False, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--format", dest="formats", action="append", choices=WRITTEN)
    parser.add_argument("--push", metavar="ORG/REPO")
    parser.add_argument("--folder-only", action="store_true")
    arguments, granted = granted_by(arguments)
    given = parser.parse_args(arguments)
    if given.folder_only and not given.push:
        raise ConfigError(
            "--folder-only needs --push ORG/REPO: it builds that repository's folder without uploading"
        )
    cfg = granted_config(given.run / CONFIG, granted, LLM)
    if not cfg.grid.hook or given.push:
        single(cfg, given.run)
    from sae_dist.train.export import export_run, publish
    from sae_dist.train.export_set import export_set

    formats = list(dict.fromkeys(given.formats or ["saelens"]))
    with owning(run_of(given.run), "exported"):
        if given.push:
            show(publish(given.run, formats, given.push, upload_it=not given.folder_only, granted=granted))
        else:
            export = export_set if cfg.is_grid else export_run
            show("\n".join(map(str, export(given.run, formats, granted))))
