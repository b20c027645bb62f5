"""The owners of formats, in environments of their own, read what an atlas and a graph are handed on as.

An environment that has this package's libraries, and the owner without its own, is enough:
`pip install --no-deps circuit-tracer`, and eai-delphi with the few modules that its loader imports.
Neuronpedia's classes are in its repository, in utils/neuronpedia-utils: a .pth file names that folder.
"""

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest

from sae_dist.atlas.formats.write import write_format
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.config.sections import LlmConfig
from sae_dist.graph.formats.neuronpedia import neuronpedia, write_neuronpedia
from sae_dist.llm.facts import llm_facts
from sae_dist.tokens.decoder import Decoder
from tests.helpers.described import described
from tests.helpers.made_graphs import graph_of

pytestmark = pytest.mark.long


def owner(request, name: str) -> str:
    """The python with an owner's code: `--peer-python delphi=PYTHON,...`; nothing installs it by itself."""
    given = request.config.getoption("--peer-python", default=None) or ""
    pythons = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    if name not in pythons:
        pytest.skip(f"{name} is in no environment that was given; the top of this file says how to make one")
    return pythons[name]


F = 300
CIRCUIT_TRACER = """
import json, sys
from pathlib import Path
from circuit_tracer.frontend.feature_models import Model
from circuit_tracer.frontend.graph_models import Node
found = {}
for latent in (3, 5, 299):
    number = Node.feature_node(1, 0, latent).feature
    model = Model.model_validate_json(Path(f"features/{number}.json").read_text())
    groups = [(each.quantile_name, len(each.examples)) for each in model.examples_quantiles]
    found[latent] = [model.index, model.act_max, model.activation_frequency, groups]
print(json.dumps(found))
"""
NEURONPEDIA = """
import gzip, json
from importlib import import_module
from pathlib import Path
MODELS = {"release": "source_release.SourceRelease", "model": "model.Model", "source": "source.Source",
          "sourceset": "source_set.SourceSet"}
def kind(name):
    module, _, name = name.partition(".")
    return getattr(import_module(f"neuronpedia_utils.db_models.{module}"), name)
(folder,) = Path("embedded").iterdir()
for name, each in MODELS.items():
    kind(each)(**json.loads((folder / f"{name}.jsonl").read_text()))
found = {}
for part, each in {"features": "feature.Feature", "activations": "activation.Activation",
                   "explanations": "explanation.Explanation"}.items():
    (path,) = (folder / part).glob("batch-*.jsonl.gz")
    rows = [kind(each)(**json.loads(line)) for line in gzip.open(path)]
    found[part] = [[row.index, getattr(row, "maxValue", None)] for row in rows]
print(json.dumps(found))
"""
GRAPH = """
import json, sys
from pathlib import Path
from circuit_tracer.frontend.graph_models import Model
model = Model.model_validate_json(Path("graph.json").read_text())
print(json.dumps([len({node.node_id for node in model.nodes}), len(model.links), model.metadata.slug]))
"""
SCHEMA = """
import json
from pathlib import Path
import neuronpedia_utils
root = next(each for each in Path(neuronpedia_utils.__path__[0]).parents if (each / "apps").is_dir())
print(json.dumps(json.loads((root / "apps/webapp/app/api/graph/graph-schema.json").read_text())))
"""
WORDS = ("description", "examples", "title", "version", "$id")
"""What a schema says to people."""
DELPHI = """
import json, sys
import torch
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents import LatentDataset
from transformers import AutoTokenizer
class Ids:
    def decode(self, ids, **_): return str(ids)
    def batch_decode(self, ids, **_): return [str(each) for each in ids]
    bos_token_id = eos_token_id = None
found = {}
for chosen in (None, {"layers.1": torch.tensor([0, 3])}):
    records = LatentDataset(
        ".", SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2),
        ConstructorConfig(min_examples=1, n_non_activating=0, example_ctx_len=32),
        tokenizer=Ids(), modules=["layers.1"], latents=chosen,
    )
    found[str(chosen is None)] = {
        each.latent.latent_index: [each.per_token_frequency, each.max_activation, len(each.examples)]
        for each in records if each is not None
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    decoder = Decoder(llm_facts(LlmConfig(name="embedded"), "layers.1:out")[0])
    made = described(tmp_path_factory.mktemp("runs") / "my run" / "atlas", F, documents=120)
    atlas = Atlas.open(made, decoder)
    atlas.labels.set(3, "quotation marks")
    return atlas


def told(python: str, code: str, folder) -> dict:
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_circuit_tracer_reads_features(request, atlas, tmp_path):
    python = owner(request, "circuit_tracer")
    found = told(python, CIRCUIT_TRACER, write_format(atlas, "circuit_tracer", tmp_path / "out"))
    for latent in (3, 5, 299):
        index, most, rate, groups = found[str(latent)]
        about = atlas.latent(latent)
        assert (index, most, rate) == (latent, about.most, about.rate)
        assert sum(size for _, size in groups) == len(atlas.examples(latent))


def test_neuronpedia_reads_an_export(request, atlas, tmp_path):
    python = owner(request, "neuronpedia")
    found = told(python, NEURONPEDIA, write_format(atlas, "neuronpedia", tmp_path / "out"))
    assert [index for index, _ in found["features"]] == [str(latent) for latent in range(F)]
    assert [index for index, _ in found["explanations"]] == ["3"]
    assert len(found["activations"]) == sum(len(atlas.examples(latent)) for latent in range(F))


def test_delphi_reads_a_cache(request, atlas, tmp_path):
    python = owner(request, "delphi")
    found = told(python, DELPHI, write_format(atlas, "delphi", tmp_path / "out"))
    places = len(atlas.places) // 256 * 256
    fired = {latent: at[at < places] for latent in range(F) for at in atlas.codes(latent)[:1]}
    assert set(found["False"]) <= {"0", "3"} and set(found["False"]) <= set(found["True"])
    assert {"0", "3"} <= set(found["True"])
    for latent, (rate, most, examples) in found["True"].items():
        assert rate == pytest.approx(len(fired[int(latent)]) / places) and examples > 0
        codes = atlas.codes(int(latent))[1][: len(fired[int(latent)])]
        assert most == pytest.approx(codes.max(), rel=1e-3)


def bare(schema, names=False):
    """A schema without what it says to people."""
    if isinstance(schema, dict):
        return {
            key: bare(value, key == "properties")
            for key, value in schema.items()
            if names or key not in WORDS
        }
    return [bare(each) for each in schema] if isinstance(schema, list) else schema


def test_a_graph_is_valid_by_neuronpedias_own_schema(request, tmp_path):
    schema = told(owner(request, "neuronpedia"), SCHEMA, tmp_path)
    jsonschema.validate(neuronpedia(graph_of()), schema)
    kept = Path(__file__).parents[1] / "helpers" / "neuronpedia_graph.json"
    assert bare(schema) == json.loads(kept.read_text()), "what the unit tests validate by"


def test_circuit_tracer_reads_a_graph(request, tmp_path):
    python = owner(request, "circuit_tracer")
    graph = graph_of()
    write_neuronpedia(tmp_path / "graph.json", graph, slug="mine")
    assert told(python, GRAPH, tmp_path) == [len(graph.nodes), len(graph.weights), "mine"]
