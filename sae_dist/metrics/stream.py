"""The numbers of the list in `metrics.catalogue` that say what was read, and what was left out of it."""

from sae_dist.metrics.metric import Metric

STREAM = (
    Metric(
        "stream/batch_hash",
        "1",
        "sum of a hash of (row, token id): equal data give an equal sum on every topology",
    ),
    Metric(
        "stream/read_rows",
        "activations",
        "activations read since the run began, those that wait to be trained on included; all ranks",
    ),
    Metric(
        "stream/excluded_rows",
        "activations",
        "activations left out for their norm since the run began, all ranks",
    ),
    Metric(
        "stream/repeated_rows",
        "activations",
        "activations repeated to replace those left out, since the run began",
    ),
    Metric(
        "stream/special_tokens",
        "tokens",
        "tokens read since the run began that are the tokenizer's special tokens, and so no activations",
    ),
    Metric("stream/masked_tokens", "tokens", "tokens left out since the run began for attention mask 0"),
    Metric("stream/listed_tokens", "tokens", "tokens left out since the run began by `tokens.exclude_ids`"),
    Metric("stream/other_roles_tokens", "tokens", "tokens left out since the run began by `tokens.roles`"),
    Metric(
        "stream/skipped_documents",
        "documents",
        "documents left out since the run began because they could not be used; stderr names the first",
    ),
)
