"""Write sae_dist/core/secret_forms.json, the forms of secrets that `core.hidden` knows, from gitleaks' rules.

    python tools/secret_forms.py gitleaks/config/gitleaks.toml COMMIT

Taken are the rules that know a secret by itself, such as by a prefix; rules that guess from the words around
it are left out. gitleaks' expressions are those of RE2, and end with what may follow in a source file.
"""

import argparse
import json
import re
from pathlib import Path

import tomllib

OUT = Path(__file__).parents[1] / "sae_dist" / "core" / "secret_forms.json"
END = r"""(?:[\x60'"\s;]|\\[nr]|$)"""
GUESSING = ("{0,50}?", "[ \\t\\w.-]{0,20}")
OTHERS = (
    "curl-auth-header",
    "curl-auth-user",
    "freemius-secret-key",
    "kubernetes-secret-yaml",
    "nuget-config-password",
    "private-key",
    "sidekiq-sensitive-url",
    "sourcegraph-access-token",
)
"""Rules for files of other programs, those that `core.hidden` has itself, and one that finds every commit."""


def main() -> None:
    """Convert the rules."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", type=Path)
    parser.add_argument("commit")
    asked = parser.parse_args()
    forms = {}
    for rule in tomllib.loads(asked.rules.read_text())["rules"]:
        pattern = rule.get("regex", "")
        if not pattern or rule["id"] in OTHERS or any(sign in pattern for sign in GUESSING):
            continue
        forms[rule["id"]] = [sorted(rule["keywords"]), converted(pattern)]
        re.compile(forms[rule["id"]][1])
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(form)}" for name, form in sorted(forms.items()))
    before = json.loads(OUT.read_text())
    source = {
        "source": "https://github.com/gitleaks/gitleaks, config/gitleaks.toml",
        "commit": asked.commit,
        "licence": before["licence"],
        "permission": before["permission"],
        "converted_by": "tools/secret_forms.py",
    }
    head = json.dumps(source, indent=1).removesuffix("\n}")
    OUT.write_text(f'{head},\n "forms": {{\n{lines}\n }}\n}}\n')
    print(f"{len(forms)} forms in {OUT}")


def converted(pattern: str) -> str:
    """Return an expression of RE2 as one of Python, without what must follow."""
    pattern = pattern.removesuffix(END).replace("[[:alnum:]]", "[A-Za-z0-9]").replace(r"\z", r"\Z")
    while (at := pattern.find("(?i)")) >= 0:
        end = _end_of_group(pattern, at + 4)
        pattern = f"{pattern[:at]}(?i:{pattern[at + 4 : end]}){pattern[end:]}"
    return re.sub(r"\(\?P<\w+>", "(?:", pattern)


def _end_of_group(pattern: str, at: int) -> int:
    """Return where the group that a place is in ends."""
    depth, in_class = 0, False
    while at < len(pattern):
        sign = pattern[at]
        if sign == "\\":
            at += 1
        elif in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign == "(":
            depth += 1
        elif sign == ")":
            if not depth:
                return at
            depth -= 1
        at += 1
    return at


if __name__ == "__main__":
    main()
