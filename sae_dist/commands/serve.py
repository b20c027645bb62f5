"""The command `sae-dist serve`: the pages of an atlas, for a person."""

from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.interpret.study.asked import whole_number
from sae_dist.launch.arguments import Parser


def help_text() -> str:
    """Return the help text."""
    return """\
Serves the atlas of a run as pages to look at, and prints their address: a list of all latents with filters,
a page of each, search, and where the model is here, a box for a sentence of your own and one for steering.
Labels that you write are kept in RUN/atlas/reviews.sqlite; nothing else is written. docs/atlas.md shows it.

RUN is a run with an atlas, its export, or the atlas itself. Only this machine reaches the pages. With --host
others do, and the address has a word that opens them, so give it to nobody else.

  --port N      where to listen (0: any that is free)
  --host NAME   listen at this address of the machine (127.0.0.1)
  --token       ask for the word on this machine, too: others may be logged in here
  --no-model    never load the model
  llm.trust_remote_code=true    run the code that the model brings along

Examples:
  sae-dist serve outputs/my_run
  sae-dist serve outputs/my_run --host 0.0.0.0 --port 8800
"""


def run(arguments: list[str]) -> None:
    """Serve until the process gets a signal to end.

    Raises:
        ConfigError: an option is not valid, there is no atlas, or the port is taken.
    """
    parser = Parser(prog="sae-dist serve", add_help=False, allow_abbrev=False)
    parser.add_argument("run")
    parser.add_argument("--port", default="0")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token", action="store_true")
    parser.add_argument("--no-model", action="store_true")
    arguments, granted = granted_by(arguments)
    given = parser.parse_args(arguments)
    port = whole_number(given.port, "--port", 0, 65535)
    if not given.host.strip():
        raise ConfigError("--host needs an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine's")
    from sae_dist.serve.server import Asked, serve

    serve(
        Asked(
            given.run,
            given.host,
            port,
            with_token=given.token,
            with_model=not given.no_model,
            trust_remote_code=granted.get(REMOTE_CODE, False),
        )
    )
