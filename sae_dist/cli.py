"""The door of the `sae-dist` command: `sae_dist.cli:main`, or `python -m sae_dist.cli`."""

from sae_dist.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())
