"""Train the small causal LM that ships inside the package, and write its model card.

    python tools/train_embedded_lm.py --out sae_dist/llm/embedded --minutes 45

Text: what every Python carries (`sae_dist.tokens.documents.python_documents`). Documents that the
project holds out are never trained on; the held-out loss and that of an interpolated trigram model
on the same tokens stand in the card. bf16 weights, one safetensors file.
"""

import argparse
import json
import math
import platform
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_dist.tokens.documents import held_out, python_documents

CONTEXT = 256
VOCAB = 2048
BOS = "<|bos|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    batch = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [np.array(ids, dtype=np.int64) for ids in batch]


def windows(documents: list[np.ndarray], bos: int) -> torch.Tensor:
    """[N, CONTEXT + 1]: BOS and then CONTEXT tokens of one document; short tails are left out."""
    rows = [
        np.concatenate([[bos], ids[start : start + CONTEXT]])
        for ids in documents
        for start in range(0, len(ids) - CONTEXT + 1, CONTEXT)
    ]
    return torch.from_numpy(np.stack(rows))


def trigram_loss(train: torch.Tensor, test: torch.Tensor) -> float:
    """Nats per token of an interpolated trigram (Jelinek-Mercer, weights fitted on train's tail)."""
    split = len(train) * 19 // 20
    counts: list[Counter] = [Counter(), Counter(), Counter()]
    totals: list[Counter] = [Counter(), Counter(), Counter()]
    for row in train[:split].tolist():
        padded = [row[0], *row]
        for i in range(2, len(padded)):
            for order in range(3):
                context = tuple(padded[i - order : i])
                counts[order][(*context, padded[i])] += 1
                totals[order][context] += 1

    def probabilities(rows: torch.Tensor) -> np.ndarray:
        """[tokens, 4]: uniform, unigram, bigram and trigram probability of each token."""
        found = []
        for row in rows.tolist():
            padded = [row[0], *row]
            for i in range(2, len(padded)):
                per_order = [1.0 / VOCAB]
                for order in range(3):
                    context = tuple(padded[i - order : i])
                    total = totals[order][context]
                    hits = counts[order][(*context, padded[i])]
                    per_order.append(hits / total if total else 0.0)
                found.append(per_order)
        return np.array(found)

    weights = np.full(4, 0.25)
    tail = probabilities(train[split:][:400])
    for _ in range(50):
        shares = tail * weights
        shares /= shares.sum(1, keepdims=True)
        weights = shares.mean(0)
    return float(-np.log(probabilities(test) @ weights).mean())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, test: torch.Tensor) -> float:
    losses = []
    for rows in test.split(32):
        logits = model(input_ids=rows[:, :-1]).logits.float()
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        )
    return torch.cat(losses).mean().item()


def build_model(bos: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=bos,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def fit(model: LlamaForCausalLM, train: torch.Tensor, minutes: float, rows: int) -> dict:
    """Train for a wall-clock budget; the schedule is a function of the share of time spent."""
    steppers = optimizers(model)
    peaks = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    generator = torch.Generator().manual_seed(0)
    start, step, order = time.monotonic(), 0, torch.empty(0, dtype=torch.long)
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        if len(order) < rows:
            order = torch.randperm(len(train), generator=generator)
        batch, order = train[order[:rows]], order[rows:]
        factor = min(1.0, step / 50) * min(1.0, (1 - share) / 0.6)
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        step += 1
        if step % 50 == 0:
            rate = step * rows * CONTEXT / (time.monotonic() - start)
            print(f"step {step} loss {loss.item():.3f} tok/s {rate:.0f} {share:.0%}", flush=True)
    return {"steps": step, "tokens": step * rows * CONTEXT}


def card(facts: dict) -> str:
    return f"""---
license: apache-2.0
---
# The embedded language model

A {facts["parameters"]:,}-parameter Llama (4 layers, width 256, context {CONTEXT}, BPE of {VOCAB}) that
ships with `sae_dist`, so that its default run needs no network. It knows Python source and little else:
it exists to have activations with structure, not to be used.

- Data: the standard library's sources and `pydoc_data.topics` of Python {facts["python"]}
  ({facts["train_tokens"]:,} training tokens, {facts["test_tokens"]:,} held out by the file's name).
- Recipe: `python tools/train_embedded_lm.py --minutes {facts["minutes"]:g}`; Muon for matrices, AdamW
  for the rest; {facts["steps"]:,} steps of {facts["rows"]} x {CONTEXT} tokens ({facts["seen"]:,} tokens,
  {facts["epochs"]:.1f} epochs), {facts["threads"]} CPU thread(s), torch {facts["torch"]}.
- Held-out loss, nats per token, of the bf16 weights as shipped: **{facts["loss"]:.3f}**.
  An interpolated trigram model on the same tokens: {facts["trigram"]:.3f}.
  Uniform: {math.log(VOCAB):.3f}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--rows", type=int, default=24, help="sequences per step")
    args = parser.parse_args()

    torch.manual_seed(0)
    documents = python_documents()
    texts = {split: [d.text() for d in documents if held_out(d.key) == split] for split in (False, True)}
    tokenizer = train_tokenizer(texts[False])
    train = windows(encode(tokenizer, texts[False]), tokenizer.bos_token_id)
    test = windows(encode(tokenizer, texts[True]), tokenizer.bos_token_id)
    permuted = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))
    test = test[permuted[:1024]]
    print(f"{train.numel():,} training tokens", flush=True)

    model = build_model(tokenizer.bos_token_id)
    fitted = fit(model, train, args.minutes, args.rows)
    model.eval()
    model = model.to(torch.bfloat16)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "train_tokens": train.numel(),
        "test_tokens": test.numel(),
        "minutes": args.minutes,
        "rows": args.rows,
        "steps": fitted["steps"],
        "seen": fitted["tokens"],
        "epochs": fitted["tokens"] / train.numel(),
        "threads": torch.get_num_threads(),
        "loss": held_out_loss(model.float(), test),
        "trigram": trigram_loss(train, test),
    }
    (args.out / "README.md").write_text(card(facts))
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
