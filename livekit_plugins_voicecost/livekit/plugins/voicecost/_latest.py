"""The latest few of something: a `deque` of so few takes ten times the memory of a list."""

from __future__ import annotations

from typing import TypeVar

_T = TypeVar("_T")


class Latest(list[_T]):
    """A list of which the oldest goes when there are too many.

    Args:
        most: How many are kept.
    """

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add(self, one: _T) -> None:
        """Append it."""
        self.append(one)
        if len(self) > self._most:
            del self[0]
