"""How a vector is written: bytes of little-endian float32, or pgvector's text and binary forms."""

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


# pgvector's forms


def to_text(value: bytes) -> str:
    """Return pgvector's text of an encoded vector: ``[0.25,1]``."""
    # Nine significant digits bring every float32 back.
    return _text(decode(value).tolist(), "%.9g,")


def to_halfvec_text(value: bytes) -> str:
    """Return the text of an encoded vector that ``halfvec`` reads, half as long.

    Raises:
        InvalidInput: A number is beyond float16, whose largest is 65,504.
    """
    # Five significant digits bring every float16 back.
    return _text(_halves(decode(value)).tolist(), "%.5g,")


def to_halfvec_rows(vectors: Sequence[Any] | Vector) -> list[bytes]:
    """Return vectors in the binary form of ``halfvec``, as binary COPY wants them.

    Args:
        vectors: Encoded vectors or arrays, all of one length; or their matrix.

    Raises:
        DimensionMismatch: Their lengths differ.
        InvalidInput: NaN, infinity, or a number beyond float16 (65,504).
    """
    import numpy as np

    if not len(vectors):
        return []
    numbers = _halves(_matrix(vectors))
    count, dimensions = numbers.shape
    # The number of dimensions and a zero that is kept for later uses stand ahead.
    rows = np.zeros((count, 2 + dimensions), dtype=">u2")
    rows[:, 0] = dimensions
    rows[:, 2:] = numbers.view("<u2")
    content, size = rows.tobytes(), 2 * (2 + dimensions)
    return [content[at : at + size] for at in range(0, len(content), size)]


def from_halfvec(value: bytes) -> Encoded:
    """Return the encoded vector of the binary form of ``halfvec``."""
    import numpy as np

    if len(value) < 6 or len(value) != 4 + 2 * int.from_bytes(value[:2]):
        raise InvalidInput(f"{len(value)} bytes are no halfvec.")
    return Encoded(np.frombuffer(value, dtype=">f2", offset=4).astype("<f4").tobytes())


def from_text(text: str) -> bytes:
    """Return the encoded vector of pgvector's text."""
    try:
        numbers = json.loads(text)
    except ValueError:
        raise InvalidInput("A vector's text is a list of numbers: [0.25,1].") from None
    return encode(numbers)


def _text(numbers: Sequence[float], pattern: str) -> str:
    # One format of all numbers is quicker than one of each.
    return "[" + (pattern * len(numbers))[:-1] % tuple(numbers) + "]"


def _matrix(vectors: Sequence[Any] | Vector) -> Vector:
    """Return vectors of one length as the rows of a matrix."""
    import numpy as np

    if isinstance(vectors[0], bytes):
        lengths = {len(vector) for vector in vectors}
        if len(lengths) == 1:
            return decode(b"".join(vectors)).reshape(len(vectors), -1)
    else:
        lengths = {len(vector) * ITEM_SIZE for vector in vectors}
        if len(lengths) == 1:
            return np.asarray(vectors, dtype="<f4")
    dimensions = sorted(length // ITEM_SIZE for length in lengths)
    raise DimensionMismatch(f"Vectors of one COPY have one length; these have {dimensions}.")


def _halves(numbers: Vector) -> npt.NDArray[np.float16]:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        halves = numbers.astype("<f2")
    if not np.isfinite(halves).all():
        raise InvalidInput(
            "PostgreSQL stores vectors as halfvec, whose numbers are finite and at most 65,504: "
            "normalise the vectors."
        )
    return halves
