"""The numbers of an evaluation. This is the list: eval.json, tables and W&B select their keys from it.

`evaluation/quality` computes them; `evaluation/README.md` defines them and says what they cannot show. For a
new number, return it from a function there, and add one `Metric` here, at its place in eval.json; add a line
to `evaluation/table.py` if the printed table and the report are to show it.
"""

from sae_dist.metrics.metric import Metric

EVALUATED = "in W&B once the run is evaluated"
IN_TRAINING = "with `eval.every`; in W&B also once the run is evaluated"

QUALITY = (
    Metric("eval/eval_tokens", "activations", "held-out activations that were evaluated", EVALUATED),
    Metric("eval/eval_excluded", "activations", "held-out activations left out for their norm", EVALUATED),
    Metric("eval/fvu", "1", "sum |x - x^|^2 / sum |x - m|^2, held out, raw space, m their mean", IN_TRAINING),
    Metric(
        "eval/fvu_pca",
        "1",
        "FVU of PCA with k components, fitted on the evaluated activations themselves",
        EVALUATED,
        "fvu_pca_reason",
    ),
    Metric(
        "eval/fvu_linear",
        "1",
        "FVU of the best affine map from input to target, fitted on the evaluated activations themselves",
        EVALUATED,
        applies="of transcoders, with eval.baselines",
    ),
    Metric(
        "eval/fvu_untrained",
        "1",
        "FVU of the dictionary before training",
        EVALUATED,
        "fvu_untrained_reason",
    ),
    Metric("eval/fvu_quantiles", "1", "quantiles over tokens of |x - x^|^2 / mean |x - m|^2", "not in W&B"),
    Metric(
        "eval/fvu_without_high_norm",
        "1",
        "FVU without tokens whose input is longer than 3 times the median",
        EVALUATED,
        "fvu_without_high_norm_reason",
    ),
    Metric("eval/high_norm_share", "share", "tokens whose input is longer than that", EVALUATED),
    Metric(
        "eval/explained_variance", "1", "1 - FVU per dimension, mean over dimensions that vary", IN_TRAINING
    ),
    Metric("eval/cosine", "1", "mean cosine of activation and reconstruction", EVALUATED),
    Metric("eval/l0", "codes", "codes above zero per activation", IN_TRAINING),
    Metric(
        "eval/dead_fraction",
        "share",
        "latents silent on all of at least 500,000 held-out activations",
        EVALUATED,
        "dead_reason",
    ),
    Metric("eval/dead_tokens", "activations", "activations on which dead latents were counted", EVALUATED),
    Metric("eval/silent_fraction", "share", "latents silent on all evaluated activations", IN_TRAINING),
    Metric(
        "eval/dense_fraction_1", "share", "latents that fire on more than 1 % of activations", IN_TRAINING
    ),
    Metric(
        "eval/dense_fraction_10", "share", "latents that fire on more than 10 % of activations", IN_TRAINING
    ),
    Metric("eval/l2_ratio", "1", "mean of |x^| / |x|", IN_TRAINING, "l2_ratio_reason"),
    Metric("eval/relative_bias", "1", "sum |x^|^2 / sum x.x^", IN_TRAINING, "relative_bias_reason"),
)
CROSS_ENTROPY = (
    Metric("eval/ce_clean", "nats", "cross-entropy of the unchanged LLM", IN_TRAINING, "ce_reason"),
    Metric(
        "eval/ce_sae", "nats", "cross-entropy with the reconstruction spliced in", IN_TRAINING, "ce_reason"
    ),
    Metric(
        "eval/ce_mean_ablated",
        "nats",
        "cross-entropy with the mean activation spliced in",
        EVALUATED,
        "ce_reason",
    ),
    Metric("eval/ce_zero_ablated", "nats", "cross-entropy with zeros spliced in", EVALUATED, "ce_reason"),
    Metric(
        "eval/ce_recovered",
        "share",
        "(ce_mean_ablated - ce_sae) / (ce_mean_ablated - ce_clean)",
        IN_TRAINING,
        "ce_reason",
    ),
    Metric(
        "eval/ce_recovered_zero",
        "share",
        "(ce_zero_ablated - ce_sae) / (ce_zero_ablated - ce_clean)",
        EVALUATED,
        "ce_reason",
    ),
    Metric(
        "eval/kl",
        "nats",
        "mean over next tokens of KL(p_clean, p), p with the reconstruction spliced in",
        IN_TRAINING,
        "ce_reason",
    ),
    Metric(
        "eval/kl_mean_ablated",
        "nats",
        "mean over next tokens of KL(p_clean, p), p with the mean activation spliced in",
        EVALUATED,
        "ce_reason",
    ),
)
MEASURED = (
    *QUALITY,
    *CROSS_ENTROPY,
    Metric("eval/ce_tokens", "tokens", "predicted tokens behind the cross-entropies", EVALUATED, "ce_reason"),
    Metric(
        "eval/embedding_cosine",
        "1",
        "mean cosine of an encoder's mean-pooled final embedding, unchanged and spliced",
        EVALUATED,
        applies="of encoders",
    ),
    Metric(
        "eval/density",
        "histogram",
        "latents by log10 of the share of activations on which they fire",
        EVALUATED,
    ),
)
"""What the end of training measures, and eval.json holds: the values, or null and the reason."""
RECOVERY = (
    Metric("eval/true_l0", "features", "true features that fire per row of synthetic activations", EVALUATED),
    Metric(
        "eval/matching_score",
        "1",
        "mean cosine of true features and decoder rows under the best one-to-one matching",
        EVALUATED,
    ),
    Metric(
        "eval/matched_share", "share", "true features whose cosine in that matching is above 0.9", EVALUATED
    ),
    Metric("eval/mmcs", "1", "mean over true features of the cosine with the nearest decoder row", EVALUATED),
    Metric(
        "eval/mmcs_latents",
        "1",
        "mean over decoder rows of the cosine with the nearest true feature",
        EVALUATED,
    ),
    Metric(
        "eval/firing_precision", "share", "codes of matched latents whose feature fires as well", EVALUATED
    ),
    Metric("eval/firing_recall", "share", "firings of features on which their latent fires", EVALUATED),
    Metric("eval/firing_f1", "share", "harmonic mean of the two", EVALUATED),
)
"""What is measured on synthetic activations in addition: see `evaluation.quality.recovery`."""
EVAL = (
    *MEASURED,
    *RECOVERY,
    Metric("eval/fvu_second_corpus", "1", "FVU on the text `eval.corpus`", EVALUATED),
    Metric("eval/eval_seconds", "s", "duration of the evaluation", EVALUATED),
    Metric("eval/table", "table", "the numbers above", EVALUATED),
    Metric("plots/{plot}", "picture", "each plots/*.png", EVALUATED),
)


def keys(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    """List the keys of some numbers in summary.json and eval.json."""
    return tuple(metric.key for metric in metrics)
