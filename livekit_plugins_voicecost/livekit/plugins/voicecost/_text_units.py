"""Text, counted in every way a speech provider bills it."""

from __future__ import annotations

import re
from typing import Final


class TextUnits:
    """Counts text in every way a speech provider bills it."""

    __slots__ = ("_open_tag", "blanks", "characters", "double_width", "markup", "utf8_bytes")

    def __init__(self) -> None:
        self.characters = 0
        self.blanks = 0  # of these, what parts words: plugins add some, and drop others
        self.utf8_bytes = 0
        self.double_width = 0
        self.markup = 0
        self._open_tag = ""  # a tag may be cut anywhere between two messages

    def add(self, text: str) -> None:
        """Count more text, exactly as it is sent."""
        size = len(text)
        self.characters += size
        self.blanks += size - sum(map(len, text.split()))
        if text.isascii():
            self.utf8_bytes += size
        else:
            self.utf8_bytes += len(text.encode("utf-8", "surrogatepass"))
            self.double_width += len(_IDEOGRAPH.findall(text))
        if self._open_tag or "<" in text:
            self._add_markup(text)

    def take_back(self, text: str) -> None:
        """Forget a message that was counted and then not sent, the last one."""
        unsent = TextUnits()
        unsent.add(text)
        self.characters -= unsent.characters
        self.blanks -= unsent.blanks
        self.utf8_bytes -= unsent.utf8_bytes
        self.double_width -= unsent.double_width
        self.markup -= min(self.markup, unsent.markup)
        self._open_tag = ""

    def _add_markup(self, text: str) -> None:
        text = self._open_tag + text
        self.markup += sum(len(tag) for tag in _TAG.findall(text))
        tail = _OPEN_TAG.search(text)
        # What is this long and still open is a "<" of the text itself, no tag.
        self._open_tag = tail.group() if tail and len(tail.group()) <= _TAG_CHARACTERS_MAX else ""

    def usage(self) -> dict[str, int]:
        """The units of a TTS leg that count text."""
        return {
            "characters": self.characters,
            "utf8_bytes": self.utf8_bytes,
            "double_width_characters": self.double_width,
            "markup_characters": self.markup,
        }


# Chinese characters, which Azure counts as two, "including kanji used in Japanese, hanja used in
# Korean, or hanzi used in other languages"; kana, hangul and full-width letters are one each.
# https://learn.microsoft.com/azure/ai-services/speech-service/text-to-speech#pricing-note
_IDEOGRAPH: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]*>")
_OPEN_TAG: Final = re.compile(r"<(?:/?[A-Za-z][^<>]*|/?)$")
_TAG_CHARACTERS_MAX: Final = 1000
