"""Rules between the fields of `activations` that describe synthetic activations."""

from collections.abc import Iterator

from sae_dist.config.sections import ActivationsConfig

GIVEN_BY_GROUP = {
    "activations.num_features": "512",
    "activations.width": "128",
    "activations.mean_active": "10",
    "activations.zipf": "0",
    "activations.magnitudes": "uniform",
    "activations.noise": "0",
    "activations.groups": "independent",
}
"""Fields that kind=synthetic needs, each with an example; activations=synthetic sets them all."""
SYNTHETIC_ONLY = (
    *GIVEN_BY_GROUP,
    "activations.group_size",
    "activations.group_strength",
    "activations.directions",
    "activations.names",
)
MOST_FEATURES = 16_384
"""With more, matching features to latents one to one would take too long."""
GROUPED = ("together", "hierarchy", "apart")


def synthetic_problems(acts: ActivationsConfig) -> Iterator[str]:
    """Yield broken rules of kind=synthetic; the ranges of single fields are checked elsewhere."""
    features, width = acts.num_features or 0, acts.width or 0
    if features > MOST_FEATURES:
        yield f"activations.num_features={features} must be at most {MOST_FEATURES}"
    if acts.mean_active is not None and acts.mean_active > features:
        yield (
            f"activations.mean_active={acts.mean_active:g} is more than activations.num_features={features}; "
            f"use at most {features}"
        )
    if acts.group_size is not None and features % acts.group_size:
        yield (
            f"activations.group_size={acts.group_size} does not divide activations.num_features={features}; "
            f"use {features - features % acts.group_size or acts.group_size} features, or another size"
        )
    if acts.group_strength is not None and acts.group_strength > 1:
        yield f"activations.group_strength={acts.group_strength:g} must be at most 1"
    for field in ("names", "directions"):
        given = getattr(acts, field)
        if given is not None and len(given) != features:
            yield (
                f"activations.{field} has {len(given)} entries and activations.num_features={features}; "
                "give one per feature"
            )
    for number, direction in enumerate(acts.directions or []):
        numbers = direction if isinstance(direction, list) else []
        fits = len(numbers) == width and all(type(each) in (int, float) for each in numbers)
        if not fits or not 0 < sum(each * each for each in numbers) < float("inf"):
            yield (
                f"activations.directions: entry {number} is {direction}; give {width} numbers "
                f"(activations.width={width}), not all 0"
            )
