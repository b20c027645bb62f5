"""What `--help` prints."""

USAGE = """sae-dist: sparse autoencoders over the activations of language models

  sae-dist train [key=value ...]    train, export and evaluate a dictionary   (train --help)
  sae-dist harvest [key=value ...]  keep activations, to train many dictionaries on   (harvest --help)
  sae-dist submit [key=value ...]   the same as a Slurm job   (submit --help)
  sae-dist resume RUN               continue an unfinished run from its folder alone
  sae-dist sweep-table SWEEP        table and figure of the runs in a folder
  sae-dist export RUN               export a run's newest checkpoint, for other libraries   (export --help)
  sae-dist import FOLDER name=...   make a run of a dictionary that others trained   (import --help)
  sae-dist eval RUN [...]           evaluate a run's export, shortly or in full   (eval --help)
  sae-dist dashboard PROJECT        panels for a project of W&B   (dashboard --help)
  sae-dist report FOLDER            one HTML page of a run and its latents, a grid, a sweep   (report --help)
  sae-dist bench ...                compare with other trainers, on this machine   (bench --help)
  sae-dist --version

Exit codes: 0 done; 2 the input is wrong (one line says what); 75 stopped on request and resumable; 1 anything
else.
"""

TRAIN = """sae-dist train [key=value ...] [-m] [--cfg job] [--help [KEY]]

Trains a dictionary, exports it, evaluates it on held-out data. Without arguments: a small language model and
text that are already on this machine.

  -m            one run for every combination of comma lists: sae-dist train -m sae.k=16,32 optim.lr=1e-3,3e-3
                hydra/launcher=slurm makes them jobs of one Slurm array (submit --help)
  --cfg job     print the composed configuration and exit
  --help KEY    what a key means, and its default: --help sae.k, --help sae (a section), --help all

Groups (group=option):
{groups}

Main keys (key=value; all of them: --help all):
  name=...                      run folder in output=outputs; default: made of the values that matter
  train_tokens=2M               activations to train on; counts are written 500k, 2M, 1e9
  batch=2048                    activations per step, all processes together
  llm.name=gpt2                 any causal or encoder model of transformers, by name or path
  hook=layers.12                module path, output by default; layers.12.mlp:in is an input;
                                blocks.12.hook_resid_post is translated; null: the middle layer
  tokens.path=FOLDER            your own text
  sae.num_latents=65536         or sae.expansion=32 times the width
  sae.k=32                      codes per activation
  sae.start=RUN                 begin with the weights of a run or of an import, not with random ones
  optim.lr=null                 null: a law of steps, latents and width
  grid.num_latents=[4096,8192]  many dictionaries on one stream, the LLM runs once for all: every combination
                                of grid.num_latents, grid.k, grid.lr, grid.hook and grid.seed
  topology.shard=2              split the dictionary over processes; topology.producers=1 lets others run
                                the LLM; topology.dp=2 doubles the whole
  resume=auto                   continue an unfinished run
  eval.every=500k               held-out FVU, L0 and more in training too; eval.ce=4k: CE and KL
  precision=float32             float64 (to compare runs), bfloat16 (activations travel in it)
  metrics.wandb=off             auto, online, offline, off

Examples:
  sae-dist train
  sae-dist train sae.num_latents=16384 train_tokens=10M topology.shard=2
  sae-dist train llm=minilm hook=encoder.layer.2 sae.num_latents=12288
  sae-dist train activations=file activations.path=acts.npy sae.expansion=16
  sae-dist train activations=cache activations.path=outputs/cache    what sae-dist harvest wrote
  sae-dist train 'grid.num_latents=[4096,16384]' 'grid.k=[16,32]'
  sae-dist train experiment=toy_superposition
"""

HARVEST = """sae-dist harvest [key=value ...] [--cfg job]

Runs the frozen LLM over the text and keeps its activations as tar files of chunks, with a manifest: what
sae-dist train activations=cache activations.path=FOLDER then reads, in the order and number of a run that
computes them itself. Takes the keys of sae-dist train (train --help); those of the dictionary are not read.

  name=...                  the folder in output=outputs; default: made of the values that matter
  train_tokens=2M           enough for runs of this length, and for shorter ones
  cache.dtype=bfloat16      float32 or float64 keep all digits: training is then bit for bit the same
  cache.shard_chunks=32     consecutive chunks of a lane in one tar file
  topology.producers=4      as many processes, each with lanes of its own; the files are the same
  resume=auto               continue an unfinished harvest; write again what a finished one has lost

Examples:
  sae-dist harvest train_tokens=2M name=cache
  sae-dist train activations=cache activations.path=outputs/cache sae.num_latents=16384
"""

DASHBOARD = """sae-dist dashboard PROJECT | ENTITY/PROJECT

Makes a view in a project of W&B (metrics.project, by default sae_dist) with the panels to watch while
dictionaries train: quality, optimizer, speed and where a step goes, GPUs and hosts, over tokens. Prints its
address. Needs W&B's key, and pip install 'sae-dist[dashboard]'.
"""

SUBMIT = """sae-dist submit [key=value ...] [--dry-run]

Checks and freezes a run as sae-dist train does, writes its job, submit.sbatch, into the run folder and
submits it: one task per rank. Takes the keys of sae-dist train (train --help).

  --dry-run                 write the job only; sbatch outputs/NAME/submit.sbatch starts it

  cluster=FILE              conf/cluster/FILE.yaml, what the job asks Slurm for; options here: {options}
  cluster.partition=...     or any key of it, which sae-dist train --help cluster explains: {keys}
  output=...                a folder that all nodes see

The job goes back into the queue by itself when it is preempted, reaches its time, or loses a node, and
continues from its newest checkpoint; sbatch outputs/NAME/submit.sbatch continues a run whose job has ended.
Logs are in outputs/NAME/logs: all.log of all ranks, rank_N.log of each.

Examples:
  sae-dist submit cluster=mysite name=wide sae.num_latents=1048576 topology.producers=8 topology.shard=24
  sae-dist train -m hydra/launcher=slurm cluster=mysite name=sweep sae.num_latents=16384,32768 sae.k=32,64
"""

EVAL = """sae-dist eval RUN [--full] [eval.key=value ...]

Evaluates the export in a run folder on held-out data: a table, RUN/eval.json, figures in RUN/plots, and
RUN/summary.json as the end of training writes it. sae_dist/evaluation/README.md defines every number.

Always: FVU (also of single tokens, and of those of ordinary length), explained variance, L0, dead, dense and
silent latents, shrinkage, cross-entropy and KL of the spliced model, density, redundancy of decoder rows.

  --full                    also probes on Python's own tokens, absorption and controls, and redundancy
                            however many latents there are
  eval.probes=FILE.jsonl    k-sparse probing on your texts, a "text" and a "label" a line; eval.probes=python
  eval.absorption=true      first-letter absorption
  eval.controls=true        the same dictionary on a random LM, and on shuffled activations
  eval.corpus=PATH          FVU on another text too: a file, or a folder
  eval.tokens=500k          held-out activations; eval.ce_tokens=64k: tokens for cross-entropy and KL
  eval.baselines=false      without PCA and the untrained dictionary

One process; the dictionary must fit into its memory, or its GPU's. In training: sae-dist train
eval.every=500k.

Examples:
  sae-dist eval outputs/my_run
  sae-dist eval outputs/my_run --full eval.corpus=my_texts/
  sae-dist train llm.random_init=true name=control    the same dictionary on a random LM: a control to train
"""

REPORT = """Writes FOLDER/report.html: one file, no scripts, nothing fetched; light and dark, desk and phone.

Of a run: what was trained, warnings, curves, results, speed, and thirty latents in context. It loads the
language model and reads as many held-out tokens as the evaluation.

Of a grid (grid.k=[16,32]) or of a sweep (train -m): a row for each dictionary, FVU against L0, curves over
one another, results, speed and cost, a grid's seeds, the warnings of all. It takes seconds and reads the
folders alone; links lead to those pages of single dictionaries that there are.

Examples:
  sae-dist report outputs/my_run
  sae-dist report outputs/my_grid
  sae-dist report 'outputs/my_grid/num_latents=4096,k=32'"""

RESUME = """Continues from the newest sound checkpoint as the run's frozen config.yaml says, to its export,
evaluation and table. On one machine it starts its own processes; within torchrun or a Slurm step it
joins. To train longer, or on other ranks, give sae-dist train its words again, with resume=auto."""

SWEEP_TABLE = """Writes SWEEP/sweep.csv, a row for each run or dictionary of a grid, unfinished ones too, with
the values in which they differ, and SWEEP/sweep.png, FVU against L0 and latents; prints the table."""

WHAT_IT_DOES = {"report": REPORT, "resume": RESUME, "sweep-table": SWEEP_TABLE}
