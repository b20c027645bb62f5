"""What a process does once that others are forked from: imports, and what would else be worked out in each.

It computes nothing with torch, so it has no threads.
"""

import gc

import matplotlib.figure  # noqa: F401
import torch._decomp.decompositions  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import sae_dist.evaluation.summary  # noqa: F401
import sae_dist.launch.grid  # noqa: F401
import sae_dist.launch.harvest  # noqa: F401
import sae_dist.launch.join  # noqa: F401
import sae_dist.launch.run  # noqa: F401
import sae_dist.train.export  # noqa: F401
import sae_dist.train.harvest  # noqa: F401
import sae_dist.train.rank  # noqa: F401
from sae_dist.core import progress
from sae_dist.launch.compose import compose_config
from sae_dist.tokens.documents import python_documents

progress.LINE_EVERY_S = 3600.0  # as tests/conftest.py

# Hydra's grammar and a thousand regular expressions of transformers stay compiled, the usual options
# composed, the files of Python's own text listed.
for options in (["grid.k=[4,8]"], ["debug=tiny"]):
    compose_config(options)
get_checkpoint_conversion_mapping("llama")
python_documents()
gc.collect()
gc.freeze()
