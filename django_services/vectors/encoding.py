"""How a vector is written: bytes of little-endian float32, or pgvector's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..exceptions import DimensionMismatch, InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

ITEM_SIZE = 4  # bytes of a float32


class Encoded(bytes):
    """Bytes that `encode` has checked, and need not check again."""

    __slots__ = ()


def encode(vector: Any, *, dimensions: int | None = None) -> bytes:
    """Return a vector as bytes of little-endian float32.

    Args:
        vector: Array, sequence of numbers, or bytes that are encoded already.
        dimensions: Length that the vector must have.

    Raises:
        InvalidInput: No vector: another shape, not numbers, NaN or infinity.
        DimensionMismatch: The vector has another length.
    """
    if isinstance(vector, Encoded) and dimensions in {None, dimensions_of(vector)}:
        return vector
    if isinstance(vector, bytes | bytearray | memoryview):
        return encode(decode(bytes(vector)), dimensions=dimensions)
    if isinstance(vector, str):
        raise InvalidInput("A vector is a sequence of numbers, not a str.")
    import numpy as np

    try:
        # What overflows becomes infinity, which is refused below.
        with np.errstate(over="ignore"):
            array = np.asarray(vector, dtype="<f4")
    except (TypeError, ValueError):
        raise InvalidInput(
            f"A vector is a sequence of numbers, not {type(vector).__name__}."
        ) from None
    if array.ndim != 1 or array.size == 0:
        raise InvalidInput(f"A vector is one row of numbers; this has shape {array.shape}.")
    if not np.isfinite(array).all():
        raise InvalidInput("A vector may hold neither NaN nor infinity.")
    if dimensions is not None and array.size != dimensions:
        raise DimensionMismatch(
            f"The vector has {array.size} dimensions, {dimensions} are wanted: "
            "take vectors of the same model."
        )
    return Encoded(array.tobytes())


def encode_rows(vectors: Sequence[Any], *, dimensions: int | None = None) -> list[bytes]:
    """Return vectors of one length as bytes, as `encode` does with each."""
    import numpy as np

    if not len(vectors):
        return []
    try:
        rows = np.stack(vectors).astype("<f4", copy=False)
    except ValueError:  # of several lengths: which is wrong, is said of each
        return [bytes(encode(vector, dimensions=dimensions)) for vector in vectors]
    if rows.ndim != 2 or not np.isfinite(rows).all() or dimensions not in {None, rows.shape[1]}:
        return [bytes(encode(vector, dimensions=dimensions)) for vector in vectors]
    size = rows.shape[1] * ITEM_SIZE
    content = rows.tobytes()
    return [content[at : at + size] for at in range(0, len(content), size)]


def decode(value: bytes) -> Vector:
    """Return the vector, read-only, of its bytes."""
    import numpy as np

    if not value or len(value) % ITEM_SIZE:
        raise InvalidInput(f"{len(value)} bytes are no float32 vector.")
    return np.frombuffer(value, dtype="<f4")


def dimensions_of(value: bytes) -> int:
    return len(value) // ITEM_SIZE


def to_text(value: bytes) -> str:
    """Return pgvector's text of an encoded vector: ``[0.25,1]``."""
    # Nine significant digits bring every float32 back.
    return "[" + ",".join(f"{number:.9g}" for number in decode(value)) + "]"


def from_text(text: str) -> bytes:
    """Return the encoded vector of pgvector's text."""
    try:
        numbers = json.loads(text)
    except ValueError:
        raise InvalidInput("A vector's text is a list of numbers: [0.25,1].") from None
    return encode(numbers)
