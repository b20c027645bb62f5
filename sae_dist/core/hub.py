"""The Hugging Face Hub over the network: whether it answers, and what its library raises if it does not."""

import sys
from functools import cache

TIMEOUT_S = 5
UNREACHABLE = "the Hugging Face Hub cannot be reached"


def network_errors() -> tuple[type[Exception], ...]:
    """Return what a call of huggingface_hub raises without a network, or with a proxy that is none.

    Its version 1 is built on httpx, version 2 on httpx2, whose errors have no class in common: they are found
    as the bases of its own error. An address or the scheme of a proxy may be wrong (ValueError), or need a
    package that is missing (ImportError).
    """
    from huggingface_hub.errors import HfHubHTTPError

    bases = [each for each in HfHubHTTPError.__mro__ if issubclass(each, Exception) and each is not Exception]
    libraries = {sys.modules[each.__module__.split(".")[0]] for each in bases}
    invalid = [each for library in libraries if (each := getattr(library, "InvalidURL", None))]
    return tuple(dict.fromkeys((*bases, *invalid, OSError, ValueError, ImportError)))


@cache
def hub_answers() -> bool:
    """Try the Hub once in a process, for a few seconds: the library's own retries take half a minute."""
    from huggingface_hub import constants, get_session

    try:
        return get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S).status_code < 500
    except network_errors():
        return False


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids to ask the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
