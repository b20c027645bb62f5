"""Choose the kernels once. Demanded and missing is an error, never a silent fallback."""

from types import ModuleType

from sae_dist.core.errors import ConfigError
from sae_dist.kernels import reference, torch_backend


def resolve(name: str) -> ModuleType:
    """The backend called `name`: a module with the functions of `reference`.

    Raises:
        ConfigError: no such backend here.
    """
    backends = {"torch": torch_backend, "reference": reference}
    if name not in backends:
        raise ConfigError(f"kernels={name} is not available here; choose torch or reference")
    return backends[name]
