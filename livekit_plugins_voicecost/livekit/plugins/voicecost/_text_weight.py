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
_WORD_MAX: Final = 64  # what is longer is no word, and is not to be weighed again and again
_OPEN_MAX: Final = 512
_WHOLE_MAX: Final = 64_000
"""Characters of a text that is weighed whole: ten milliseconds of the event loop."""
_PARTS: Final = 8
_FIRST_IDEOGRAPH: Final = "\u2e80"
_WORDS: Final = tuple(
    TOKEN + _LETTER * max(0, letters - _WORD_LETTERS) for letters in range(2 * TOKEN)
)


def weight(text: str) -> int:
    """The weight of a whole text, in sixteenths of a token; of a book by parts all over it."""
    size = len(text)
    if size > _WHOLE_MAX:
        part = _WHOLE_MAX // _PARTS
        starts = [(size - part) * each // (_PARTS - 1) for each in range(_PARTS)]
        weighed = sum(weight(text[start : start + part]) for start in starts)
        return weighed * size // (part * _PARTS)
    total = 0
    for piece in _PIECES.findall(text):
        total += _weight(piece)
    return total


class RunningWeight:
    """The weight of a text that comes in chunks, however they cut it; only its end is kept."""

    __slots__ = ("_closed", "_open", "_tail_weight", "_weighed")

    def __init__(self) -> None:
        self._open: str = ""  # the last word, and what was not weighed yet
        self._weighed = 0  # how much of it was
        self._tail_weight = 0  # of that much
        self._closed = 0  # the weight of all before it

    def add(self, text: str) -> None:
        """Take the next chunk."""
        self._open += text
        if len(self._open) > _OPEN_MAX:
            self._weigh()

    @property
    def value(self) -> int:
        """The weight so far, in sixteenths of a token."""
        if self._weighed != len(self._open):
            self._weigh()
        return self._closed + self._tail_weight

    def _weigh(self) -> None:
        text, start = self._open, self._weighed
        if text[start].isspace() and start:  # the last word is over
            self._closed += self._tail_weight
            text = text[start:]
        closed, self._open, self._tail_weight = _cut(text)
        self._closed += closed
        self._weighed = len(self._open)


@functools.lru_cache(maxsize=4096)  # mostly a word or two, which come again
def _cut(text: str) -> tuple[int, str, int]:
    """The weight of all but the word that `text` ends with, that word, and its weight."""
    pieces: list[str] = _PIECES.findall(text)
    closed = sum(map(_weight, pieces))
    last = pieces[-1] if pieces else ""
    if not last or not text.endswith(last):
        # White space at the end may belong to a number that follows.
        return closed, text[-1:], 0
    if len(last) > _WORD_MAX:
        return closed, "", 0
    tail_weight = _weight(last)
    return closed - tail_weight, last, tail_weight


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
