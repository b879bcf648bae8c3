"""The simulated provider's tokenizer: lossless, and neither a character nor a word count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulators import LONG_ANSWER
from tests.simulators.tokens import count_tokens, render_prompt, tokenize


@given(st.text())
def test_no_character_is_lost(text: str) -> None:
    assert "".join(tokenize(text)) == text


@pytest.mark.parametrize(
    ("text", "characters_per_token"),
    [
        pytest.param(LONG_ANSWER, (3.7, 4.8), id="English prose"),
        pytest.param('{"city": "Paris", "days": [1, 2, 3]}' * 20, (1.5, 3.2), id="JSON"),
        pytest.param("今天天气怎么样？" * 20, (0.8, 1.5), id="Chinese"),
        pytest.param("Donaudampfschifffahrtsgesellschaft " * 20, (3, 6), id="long German"),
        pytest.param("4111111111111111 " * 20, (1.5, 3), id="digits"),
    ],
)
def test_the_ratio_depends_on_the_text_as_a_real_encoder_s_does(
    text: str, characters_per_token: tuple[float, float]
) -> None:
    low, high = characters_per_token
    assert low <= len(text) / count_tokens(text) <= high


def test_a_longer_conversation_begins_with_the_tokens_of_the_shorter_one() -> None:
    """Else no prefix could be cached."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    longer = [*messages, {"role": "assistant", "content": "Hello!"}]
    short, long = render_prompt(messages, []), render_prompt(longer, [])
    assert long[: len(short)] == short


def test_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="image_url"):
        render_prompt([{"role": "user", "content": [{"type": "image_url"}]}], [])
