"""How heavy a text is: about how many tokens a byte-pair encoder makes of it.

No model's vocabulary is needed: such encoders split text in much the same places (words with
their space, digits in threes, runs of punctuation), know short words whole and cut long ones up.
How many tokens of one provider a unit of weight is, its own reports have to say.
"""

from __future__ import annotations

import functools
import re
from typing import Final

TOKEN: Final = 16
"""The weight of one token."""

_PIECES: Final = re.compile(
    r"[A-Za-z\u00c0-\u024f'\u2019]+"  # words of Latin script, contractions whole
    r"| ?[0-9]+"  # no encoder joins a number with the space before it
    r"|[^\W\d_A-Za-z\u00c0-\u024f]+"  # other scripts
    r"|[\r\n]+"
    r"|[^\w\s'\u2019]+|[\d_]+"
)
_WORD_LETTERS: Final = 5  # up to here nearly every word is known whole
_LETTER: Final = 2  # of a longer word, each
_ACCENTED: Final = 4  # the same for a word with a letter beyond ASCII
_IDEOGRAPH: Final = 12
_OTHER_LETTER: Final = 5  # Cyrillic, Greek, Arabic, Indic scripts
_LINES: Final = 8  # mostly joined with the punctuation before them
_MARKS: Final = 3  # punctuation characters that are still one token
_TAIL_MAX: Final = 64  # a longer "word" is none, and not to be weighed again with every chunk
_FIRST_IDEOGRAPH: Final = "\u2e80"
_WORDS: Final = tuple(
    TOKEN + _LETTER * max(0, letters - _WORD_LETTERS) for letters in range(2 * TOKEN)
)


def weight(text: str) -> int:
    """The weight of a whole text, in sixteenths of a token."""
    total = 0
    for piece in _PIECES.findall(text):
        total += _weight(piece)
    return total


class RunningWeight:
    """The weight of a text that comes in chunks, however they cut it; only its last word is kept.

    Attributes:
        value: The weight so far, in sixteenths of a token.
    """

    __slots__ = ("_closed", "_tail", "value")

    def __init__(self) -> None:
        self._closed = 0  # the weight of all before the tail
        self._tail: str = ""
        self.value = 0

    def add(self, text: str) -> None:
        """Take the next chunk."""
        text = self._tail + text
        pieces: list[str] = _PIECES.findall(text)
        if not pieces:  # white space
            self._tail = text[-1:]
            return
        last = pieces.pop()
        closed = self._closed
        for piece in pieces:
            closed += _weight(piece)
        open_weight = _weight(last)
        self.value = closed + open_weight
        if text.endswith(last):
            self._tail = last if len(last) <= _TAIL_MAX else ""
            self._closed = closed if self._tail else self.value
        else:
            self._tail = text[-1]
            self._closed = self.value


@functools.lru_cache(maxsize=4096)  # single words, most of which come again
def _weight(piece: str) -> int:
    last = piece[-1]
    size = len(piece)
    if "a" <= last <= "z" or "A" <= last <= "Z":
        if piece.isascii():
            return _WORDS[size] if size < len(_WORDS) else TOKEN * size // 4
    elif "0" <= last <= "9":
        digits = size - (piece[0] == " ")
        return TOKEN * ((digits + 2) // 3 + size - digits)
    elif last == "\n" or last == "\r":
        return _LINES
    if last.isalpha():
        if last >= _FIRST_IDEOGRAPH:
            return _IDEOGRAPH * size
        if last > "\u024f":
            return TOKEN // 2 + _OTHER_LETTER * size
        return _ACCENTED + TOKEN + _LETTER * max(0, size - _WORD_LETTERS)
    if piece.isascii() or not last.isalnum():
        return TOKEN if size <= _MARKS else TOKEN * (size + 1) // _MARKS
    return TOKEN * size
