"""What people ran into with other trainers, tried on the whole command: what happened, and what is right.

python tests/cases.py [--only WORDS]
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers import cases_exchange, cases_training  # noqa: E402
from tests.helpers.architectures import quiet  # noqa: E402
from tests.helpers.cases_desk import Desk  # noqa: E402


def main() -> int:
    """Try the cases; print a line for each, and return how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    only, wrong = parser.parse_args().only, 0
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for case in (*cases_training.CASES, *cases_exchange.CASES):
            if only not in case.__name__:
                continue
            try:
                verdict, happened = "right", case(desk)
            except Exception as error:
                verdict, happened = "WRONG", f"{type(error).__name__}: {error}"
                wrong += 1
            print(f"{verdict}  {(case.__doc__ or '').strip()}\n       {happened[:400]}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main() and 1)
