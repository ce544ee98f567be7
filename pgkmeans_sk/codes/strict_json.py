"""JSON of files that nobody vouches for: what is ambiguous is refused instead of guessed at."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn


def parse(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises
    ------
    ValueError
        If it is not JSON, not UTF-8, nested too deeply, or holds NaN, an infinity or a key twice.
        Readers differ in what they make of the last; here a key that comes twice is damage.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # UnicodeDecodeError is a ValueError
    try:
        return json.loads(text, object_pairs_hook=_without_twins, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        twin = keys.most_common(1)[0][0]
        raise ValueError(f"got the key {twin!r} twice, but expected it once")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"got {constant}, but expected a finite number")
