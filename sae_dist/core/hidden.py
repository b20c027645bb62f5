"""Secrets in texts: found by their form, by the name of what they are given to, and in this environment.

The forms of providers' tokens are gitleaks' (secret_forms.json); those of commands, headers and addresses are
ours. What names a variable of the shell, such as `--token $TOKEN`, is no secret.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

FORMS = Path(__file__).with_name("secret_forms.json")
MASK = "***"
WORDS = (
    r"pass(?:word|wd|phrase|code)?|pwd|secret|token|api[_-]?key|(?:access|account|private|secret|signing|shared"
    r"|shared-?access)[_-]?key|auth|credentials?|signature|sas|bearer"
)
"""The ends of names of what is secret."""
VALUE = r"""["']?(?!\$|["'](?:\s|$))[^\s"'&;,)\]}]"""
"""The first sign of a value that is no variable of the shell."""
STRONG = r"pass(?:word|wd|phrase)|secret|(?:api|access|private)[_-]?key"
"""Those that stand for themselves, even before a colon: `token: the` may be a feature's name."""
GIVEN = rf"(?:(?:{WORDS})\s{{0,3}}=|(?:{STRONG})\s?:(?!//)|(?:{WORDS})[\"']\s?:)"
NAMED = rf"(?i){GIVEN}\s{{0,3}}{VALUE}"
"""The end of a name and its value, in a config. In code or a log it would find `token = next(tokens)`."""
REST = r"[^\s\"'&;]*"
CURL = r"\bcurl\b[^|;]{0,500}?\s"
PREFIXED = (
    r"(?:gh[opsur]_|hf_|api_org_|npm_|gsk_|r8_|dapi|sk-|sk_(?:live|test)_|AIza)[A-Za-z0-9]{20,}",
    r"(?:github_pat_|glpat-|sk-(?:proj|ant|svcacct|admin|or)-|wandb_v1_|pypi-|xox[abeoprs]-|ya29\.|nvapi-|pplx-"
    r"|tgp_v1_|dop_v1_|SG\.|whsec_|KGAT_|ntn_|figd_|ATATT3|1//0|sbp_|NRAK-|tskey-"
    r"|dckr_pat_|GOOG1E|local-(?=[0-9a-f]{40})|key-(?=[0-9a-f]{32})|(?:xai-|csk-|rpa_|api_)(?=[A-Za-z0-9]{34})"
    r"|fw_(?=[A-Za-z0-9]{22})|secret_(?=[A-Za-z0-9]{43}))(?=[\w.-]{0,200}\d)[\w.-]{16,}",
)
"""Tokens that begin as their provider's do, whatever their length."""
SIGNED = (
    rf"x-(?:amz|goog)-(?:signature|credential|security-token)|sig|key|awsaccesskeyid|code|[\w-]*(?:{WORDS})"
)
PAIR = rf"{VALUE}[^\s:\"']*:(?!\$)[^\s\"']+"
LOGINS = (
    r"(?:\bdocker\b[^|;]{0,300}?\slogin\b[^|;]{0,300}?\s-p|\bwandb\s+login|\bredis-cli\b[^|;]{0,300}?\s-a"
    r"|\bldap[a-z]{1,9}\b[^|;]{0,300}?\s-w|\bmc\s+alias\s+set\s+\S+\s+\S+\s+\S+)\s+(?!-)"
)
OWN = {
    "a password": rf"(?i)(?:password|passwd|passphrase|secret|api[_-]?key)\s?=\s?{VALUE}{REST}",
    "a variable": rf"\b\w*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)={VALUE}{REST}",
    "an option": rf"(?i)(?<!\S)--?(?:[a-z0-9]+-)*(?:{WORDS}|oauth2-bearer)\s+(?!-){VALUE}\S*",
    "a user of curl": rf"{CURL}(?:-[a-zA-Z]{{0,8}}[uU]|--(?:proxy-)?user)[=\s]?{PAIR}",
    "a user of httpie": rf"\b(?:https?|xh)\s[^|;]{{0,500}}?(?:-a|--auth)[=\s]{PAIR}",
    "a password of ssh": rf"\bsshpass\s+-p\s?{VALUE}\S*",
    "a password of SQL": rf"\b(?:mysql|mysqldump|mariadb)\b[^|;]{{0,500}}?\s-p{VALUE}\S*",
    "a login": rf"(?i)\blogin\s+\S+\s+password\s+{VALUE}\S*",
    "a header": rf"(?i)\b(?:proxy-)?authorization\s*[:=]\s*[\"']?(?:\w+\s+{VALUE}|(?!\w+\s){VALUE})[^\s\"']+",
    "a bearer": rf"(?i)\bbearer\s+{VALUE}[^\s\"']{{7,}}",
    "a header of a key": rf"(?i)\bx-[a-z-]{{0,30}}(?:key|token|secret|auth[a-z-]{{0,9}})\s*:\s*{VALUE}{REST}",
    "a cookie": rf"(?i)\b(?:set-)?cookie\s*:\s*{VALUE}{REST}",
    "a cookie of curl": rf"{CURL}(?:-b|--cookie)[=\s]?{VALUE}{REST}",
    "a password in an address": r"(?i)\b[a-z][a-z0-9+.-]{0,30}://[^/\s@?#\"':]*:[^/\s@]+@",
    "a token in an address": r"(?i)\b(?:git\+)?(?:https?|ftps?)://(?!\$)[^/\s@?#\"']+@",
    "a signed address": rf"(?i)[?&;#](?:{SIGNED})={VALUE}[^\s\"'&#]*",
    "a private key": r"-----BEGIN[ A-Z0-9_-]{0,100}PRIVATE KEY(?: BLOCK)?-----",
    "a key of AWS": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "a token of JSON": r"\beyJ[\w-]{8,}\.eyJ[\w-]{5,}\.[\w-]{16,}",
    "a bot": r"\b(?:bot)?[0-9]{8,10}:[\w-]{35}(?![\w-])",
    "a hook": r"(?i)(?:discord\.com/api/webhooks|webhook\.office\.com)/\S{16,}",
    "a password of a command": rf"{LOGINS}{VALUE}\S*",
    "a password of OpenSSL": rf"\bopenssl\b[^|;]{{0,500}}?\s(?:-k\s+|-pass(?:in|out)?\s+pass:){VALUE}\S*",
    "an archive": rf"\b(?:unzip|zip|7z|7za)\b[^|;]{{0,500}}?\s(?:-P\s?|-p){VALUE}\S*",
    "a share": rf"\bsmbclient\b[^|;]{{0,500}}?\s-U\s?{VALUE}[^\s%]*%\S+",
    "a header of others": rf"(?i)\b(?:private-token|job-token|ocp-[a-z-]{{0,40}}key)\s*:\s*{VALUE}{REST}",
    "a token": rf"\b(?:{'|'.join(PREFIXED)})",
}
"""Forms that need no list, by what they are."""
SECRET_NAME = re.compile(
    r"(?:KEY|TOKEN|SECRET|PASS(?:WORD|WD|PHRASE)?|PWD|CREDENTIALS?|AUTH)$", re.IGNORECASE
)
NO_SECRETS = ("PWD", "OLDPWD", "SSH_AUTH_SOCK")
"""Variables that are named like secrets, and are none."""
SUBSTRING, WHOLE = 12, 6
"""Values of so many signs are looked for within words, and shorter ones, of so many, as words."""


@functools.cache
def _own() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{_local(pattern)})" for pattern in OWN.values()))


def _local(pattern: str) -> str:
    """Return an expression whose flag is its own alone."""
    return f"(?i:{pattern.removeprefix('(?i)')})" if pattern.startswith("(?i)") else pattern


@functools.cache
def _forms() -> list[tuple[list[str], str]]:
    found = json.loads(FORMS.read_text(encoding="utf-8"))["forms"]
    return [(keywords, pattern) for keywords, pattern in found.values()]


def secrets_of_environment() -> dict[str, str]:
    """Return the variables of this environment that are named like secrets, with their values."""
    return {
        name: value
        for name, value in os.environ.items()
        if (found := SECRET_NAME.search(name))
        and name not in NO_SECRETS
        and len(value) >= (SUBSTRING if found[0].upper() in ("KEY", "AUTH") else WHOLE)
    }


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the secrets of a text begin and end, as far as they are known without their names."""
    yield from (found.span() for found in _own().finditer(text))
    small = text.lower()
    for keywords, pattern in _forms():
        if any(keyword in small for keyword in keywords):
            yield from (found.span() for found in re.finditer(pattern, text))
    for value in secrets_of_environment().values():
        word = re.escape(value) if len(value) >= SUBSTRING else rf"(?<!\w){re.escape(value)}(?!\w)"
        yield from (found.span() for found in re.finditer(word, text))


def holds_secret(text: str) -> bool:
    """Return whether a value of a config holds a password or a token."""
    return re.search(NAMED, text) is not None or next(spans(text), None) is not None


def masked(text: str) -> str:
    """Return a text with `MASK` in place of its secrets."""
    places = sorted(spans(text))
    found, end = [], 0
    for first, last in places:
        if last > end:
            found += [text[end:first], MASK] if first >= end else []
            end = last
    return "".join([*found, text[end:]]) if places else text
