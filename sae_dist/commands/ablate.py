"""The command `sae-dist ablate`: latents ranked by what removing them does to the next token."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show
from sae_dist.interpret.study.asked import whole_number
from sae_dist.interpret.study.prompts import read_prompts
from sae_dist.launch.arguments import Parser

if TYPE_CHECKING:
    from sae_dist.interpret.ranking import Ranking


def help_text() -> str:
    """Return the help text."""
    return """\
Ranks latents by what removing each does to the token after a prompt: to its logit minus the mean logit, or
minus the logit of another token, at the prompt's last token, mean over prompts. Gradient times code chooses
candidates; each is then removed for real, and the table has both. RUN is a run, an export, or an imported
dictionary. Writes nothing.

An effect is marked (*) where it is more than chance over prompts, by Holm over all latents that fire, and
outside the interval in which 95 % of latents that fire as often on these prompts would be.

  --prompts FILE     one prompt a line, or .jsonl with "prompt" and maybe "target" and "against"
                     (64 beginnings of held-out texts)
  --target TEXT      the token after the prompt, its first one counts (what the model itself would write)
  --against TEXT     minus the logit of this one (minus the mean logit)
  --top N            how many are shown (20)
  --candidates N     how many are removed for real (200)
  --controls N       draws of latents that fire as often (8)
  --seed N           of draws and resampling (0)
  --model NAME       another model than the dictionary's own
  --force            take a model of another name
  llm.trust_remote_code=true    run the code that the model brings along
  --json             print JSON

Examples:
  sae-dist ablate outputs/my_run
  sae-dist ablate outputs/my_run --prompts prompts.txt --target " Paris" --against " Rome" --json
"""


def run(arguments: list[str]) -> None:
    """Print the table of latents.

    Raises:
        ConfigError: an option is not valid, or does not fit the dictionary, the model or a file.
    """
    parser = Parser(prog="sae-dist ablate", add_help=False, allow_abbrev=False)
    parser.add_argument("run")
    for option in ("--prompts", "--target", "--against", "--model"):
        parser.add_argument(option)
    for option, default in (("--top", "20"), ("--candidates", "200"), ("--controls", "8"), ("--seed", "0")):
        parser.add_argument(option, default=default)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments, granted = granted_by(arguments)
    given = parser.parse_args(arguments)
    if given.against is not None and given.target is None and given.prompts is None:
        raise ConfigError("--against needs --target")
    candidates = whole_number(given.candidates, "--candidates", 1, 100_000)
    numbers = {
        "candidates": candidates,
        "top": min(whole_number(given.top, "--top", 1, 100_000), candidates),
        "draws": whole_number(given.controls, "--controls", 2, 64),
        "seed": whole_number(given.seed, "--seed", 0, 2**31 - 1),
    }
    path = None if given.prompts is None else Path(given.prompts)
    if path is not None:
        read_prompts(path, given.target, given.against)
    from sae_dist.interpret.ranking import as_json, ranked

    found = ranked(
        given.run,
        prompts=path,
        target=given.target,
        against=given.against,
        name=given.model,
        force=given.force,
        trust_remote_code=granted.get(REMOTE_CODE, False),
        **numbers,
    )
    show(json.dumps(as_json(found), indent=1) if given.json else table(found))


def table(found: "Ranking") -> str:
    """Return a ranking as lines of text."""
    lines = [
        f"{found.model} at {found.hook}: {found.metric}, {found.mean:.3f} over {found.num_prompts} prompts",
        f"{found.fired} latents fire, {found.candidates} were removed; gradient times code has the sign of "
        f"{100 * found.sign:.0f} % right, rank correlation {found.rank:.2f}",
        "",
        f"{'latent':>10} {'prompts':>8} {'removed':>9} {'interval':>20} {'gradient':>9} {'p by Holm':>10} "
        f"{'control':>20}",
    ]
    for each in found.rows:
        interval = f"{each.lower:+.3f} to {each.upper:+.3f}"
        control = f"{each.control[0]:+.3f} to {each.control[1]:+.3f}"
        lines.append(
            f"{each.latent:>10} {each.prompts:>8} {each.exact:>+9.3f} {interval:>20} {each.predicted:>+9.3f} "
            f"{each.adjusted:>10.2g} {control:>20}{' *' if each.marked else ''}"
        )
    marked = sum(each.marked for each in found.rows)
    lines += [
        "",
        f"* more than chance, and outside of where 95 % of latents that fire as often would be: "
        f"{marked or 'none'} of {len(found.rows)}",
    ]
    return "\n".join(lines)
