"""Values whose content must not reach logs, reprs, tracebacks or pages.

Django's debug page prints the ``repr`` of every local variable of every frame.
What a user wrote therefore travels through this package as `Private`, whose
``repr`` tells the kind and size only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Private(Generic[T]):
    """A value that only `reveal` shows."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        return self._value

    def __repr__(self) -> str:
        size = f" of length {len(self._value)}" if hasattr(self._value, "__len__") else ""
        return f"<private {type(self._value).__name__}{size}>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Private) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Private, self._value))


def private(value: T | Private[T]) -> Private[T]:
    """Return a value as `Private`, also if it is so already."""
    return value if isinstance(value, Private) else Private(value)


class Texts(Sequence[str]):
    """Texts in an order, of which only the number shows."""

    __slots__ = ("_texts",)

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(texts)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]
        picked = self._texts[position]
        return Texts(picked) if isinstance(position, slice) else picked

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __repr__(self) -> str:
        return f"<{len(self._texts)} private texts>"
