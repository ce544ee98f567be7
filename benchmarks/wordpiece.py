"""BERT's uncased tokenizer: words and signs, each cut into the longest pieces of a vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

UNKNOWN, BEGIN, END = "[UNK]", "[CLS]", "[SEP]"
LONGEST_WORD = 100  # characters; longer ones are unknown, as in the original


class WordPiece:
    """Text to token numbers; a piece that continues a word is listed with ``##`` before it."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text("utf-8").split("\n")
        self.numbers = {piece: number for number, piece in enumerate(lines) if piece}

    def encode(self, text: str, longest: int = 256) -> list[int]:
        """Return the token numbers with [CLS] and [SEP] around them, at most ``longest``."""
        return self.encode_parts((text,), longest)[0]

    def encode_parts(self, texts: Sequence[str], longest: int = 256) -> list[list[int]]:
        """Return the token numbers of each of one or more texts, to be put one behind the other.

        [CLS] stands before the first, [SEP] behind each; the longer ones are shortened until there
        are at most ``longest`` tokens in all.
        """
        pieces = [[p for word in _words(text) for p in self._pieces(word)] for text in texts]
        while sum(map(len, pieces)) > longest - 1 - len(texts):
            max(pieces, key=len).pop()
        parts = [[self.numbers[piece] for piece in (*text, END)] for text in pieces]
        parts[0].insert(0, self.numbers[BEGIN])
        return parts

    def _pieces(self, word: str) -> list[str]:
        pieces: list[str] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self.numbers), None)
            if end is None:
                return [UNKNOWN]
            pieces.append(mark + word[start:end])
            start = end
        return pieces or [UNKNOWN]


def _words(text: str) -> Iterator[str]:
    """Split lower-case text without accents at spaces, and around every sign."""
    plain = unicodedata.normalize("NFD", text.lower())
    spaced = []
    for character in plain:
        kind = unicodedata.category(character)
        if character.isspace():
            spaced.append(" ")
        elif kind in ("Mn", "Cc", "Cf"):  # accents, control characters
            continue
        elif kind.startswith("P") or _is_ascii_sign(character) or _is_chinese(character):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    yield from "".join(spaced).split()


def _is_ascii_sign(character: str) -> bool:
    return character.isascii() and character.isprintable() and not character.isalnum()


def _is_chinese(character: str) -> bool:
    return 0x4E00 <= ord(character) <= 0x9FFF
