"""A parser of options with errors of one line."""

import argparse
from typing import NoReturn

from sae_dist.core.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser that raises a ConfigError for a wrong option, where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Refuse the options.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")
