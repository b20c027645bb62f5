"""Fields of a request: numbers, choices and forms, each within bounds."""

import math
from collections.abc import Collection, Mapping
from urllib.parse import parse_qs

from starlette.requests import Request

MOST_BYTES = 1 << 16
"""Of a form."""
MOST_FIELDS = 16


class Refused(Exception):
    """A request that is answered with a line: its status and what is wrong with it."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


async def form(request: Request) -> dict[str, str]:
    """Return the fields of a form that was sent; of a field that is there twice the last.

    Raises:
        Refused: it is too long, or no form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "a form is sent as application/x-www-form-urlencoded")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise Refused(413, f"a form has at most {MOST_BYTES // 1024} KiB")
    try:
        found = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:  # UnicodeDecodeError is one
        raise Refused(400, "the form is not one of these pages") from None
    return {key: values[-1].replace("\r\n", "\n") for key, values in found.items()}


def text(given: Mapping[str, str], key: str, most: int) -> str:
    """Return a text; missing ones are empty.

    Raises:
        Refused: it is longer than `most` characters.
    """
    found = given.get(key, "")
    if len(found) > most:
        raise Refused(400, f"{key} has {len(found):,} characters; give at most {most:,}")
    return found


def choice(given: Mapping[str, str], key: str, known: Collection[str], default: str) -> str:
    """Return one of the known words.

    Raises:
        Refused: it is another.
    """
    found = given.get(key) or default
    if found not in known:
        raise Refused(400, f"{key}={found[:40]}: choose {', '.join(known)}")
    return found


def whole(given: Mapping[str, str], key: str, least: int, most: int, default: int) -> int:
    """Return a whole number.

    Raises:
        Refused: it is none, or out of bounds.
    """
    found = given.get(key) or str(default)
    if not (found.isascii() and found.isdecimal() and len(found) < 19 and least <= int(found) <= most):
        raise Refused(400, f"{key}={found[:40]}: give a whole number from {least:,} to {most:,}")
    return int(found)


def real(given: Mapping[str, str], key: str) -> float | None:
    """Return a number; None: nothing was given.

    Raises:
        Refused: it is none, or not finite.
    """
    found = given.get(key, "").strip()
    if not found:
        return None
    try:
        number = float(found[:40])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refused(400, f"{key}={found[:40]}: give a number")
    return number
