"""Embeddings and moderations: what the API sends for texts.

Vectors are the embedded model's, filled up with zeros: equal texts have equal vectors,
and texts about the same are near to each other, so a test may search by meaning.
Imported when a fake is asked for one, since it loads numpy.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..embedded import DIMENSIONS
from ..embedded.model import load
from .answers import Answer, error_answer, json_answer
from .calls import Call
from .replies import count_tokens

#: Gives a text's vector: numbers, as many as the request asks for or fewer.
Embed = Callable[[str], Sequence[float]]

_MOST_INPUTS = 2_048  # of OpenAI's endpoint


def answer(call: Call, dimensions: int, embed: Embed | None) -> Answer:
    """Return the embeddings of a call's texts, at L2 norm 1.

    Args:
        call: To ``/embeddings``.
        dimensions: Length of the vectors.
        embed: Gives a text's vector in the model's place.
    """
    texts = _inputs(call.body.get("input"))
    if not texts or not all(texts) or len(texts) > _MOST_INPUTS:
        return error_answer(400, "'$.input' is invalid.", param="input")
    vectors = _vectors(texts, dimensions) if embed is None else _given(texts, dimensions, embed)
    rows = [
        {"object": "embedding", "index": index, "embedding": row}
        for index, row in enumerate(_encoded(vectors, call.body.get("encoding_format")))
    ]
    tokens = sum(map(count_tokens, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_answer({"object": "list", "data": rows, "model": call.model, "usage": usage})


def moderation(call: Call, flagged: Callable[[str], Collection[str]]) -> Answer:
    """Return what moderation says of a call's texts: the categories that they are flagged with."""
    from openai.types.moderation import Categories

    names = [field.alias or name for name, field in Categories.model_fields.items()]
    results = [_moderated(flagged(text), names) for text in call.texts]
    return json_answer({"id": "modr-fake", "model": call.model or "fake", "results": results})


def _moderated(flagged: Collection[str], names: Sequence[str]) -> dict[str, Any]:
    return {
        "flagged": bool(flagged),
        "categories": {name: name in flagged for name in names},
        "category_scores": {name: 0.99 if name in flagged else 0.001 for name in names},
        "category_applied_input_types": {name: ["text"] for name in names},
    }


def _inputs(given: Any) -> list[str]:
    """Return the texts of ``input``; an array of tokens is named by its numbers."""
    if isinstance(given, list) and given and isinstance(given[0], int):
        given = [given]
    texts = given if isinstance(given, list) else [given]
    return [text if isinstance(text, str) else " ".join(map(str, text or ())) for text in texts]


def _vectors(texts: Sequence[str], dimensions: int) -> np.ndarray:
    vectors = load().encode(texts, min(dimensions, DIMENSIONS)).vectors
    return np.pad(vectors, ((0, 0), (0, dimensions - vectors.shape[1])))


def _given(texts: Sequence[str], dimensions: int, embed: Embed) -> np.ndarray:
    vectors = np.zeros((len(texts), dimensions), np.float32)
    for row, text in zip(vectors, texts, strict=True):
        numbers = np.asarray(embed(text), np.float32)
        if numbers.ndim != 1 or len(numbers) > dimensions:
            raise ValueError(
                f"embed_with()'s function gave an array of shape {numbers.shape}; the request "
                f"asks for {dimensions} numbers at most. Give as many, or fewer."
            )
        row[: len(numbers)] = numbers / (np.linalg.norm(numbers) or 1)
    return vectors


def _encoded(vectors: np.ndarray, encoding: object) -> Sequence[Any]:
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    return list(vectors.tolist())
