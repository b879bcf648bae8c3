"""Text counted as providers bill it."""

from __future__ import annotations

import pytest

from livekit.plugins.voicecost._text_units import TextUnits


@pytest.mark.parametrize(
    ("text", "double_width"),
    [
        pytest.param("Hello", 0, id="latin"),
        pytest.param("今日は東京です", 4, id="kanji count twice, kana once"),
        pytest.param("大韓民國 대한민국", 4, id="hanja count twice, hangul once"),
        pytest.param("你好，世界！", 4, id="hanzi count twice, full-width punctuation once"),
        pytest.param("𠮷野家", 3, id="beyond the basic plane"),
    ],
)
def test_only_chinese_characters_count_twice(text: str, double_width: int) -> None:
    units = TextUnits()
    units.add(text)
    assert units.usage()["double_width_characters"] == double_width
    assert units.usage()["characters"] == len(text)
