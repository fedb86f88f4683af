"""How many tokens a text or a request has: counted offline, bounded, or guessed quickly.

`count` cuts a text as the model does; its vocabulary loads on first use, in about half
a second. `upper_bound` and `estimate` look at a request's decoded JSON body and need
no vocabulary: no text has more tokens than UTF-8 bytes. No function here does any
other I/O, and none lets a text into an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ..exceptions import InvalidInput
from ..privacy import Private
from . import catalogue, vocabulary
from .texts import collection_fault

#: The most tokens of an image, by the ``detail`` that is asked for; any other is "auto".
#: low: 512 x 512 pixels, 256 patches, at most 2.46 tokens each; high: 2,500 patches, or
#: 1,536 of 2.46 tokens; auto: from GPT-5.6 on an image keeps its size, up to 30,000
#: patches, above which it is refused. A patch has 32 x 32 pixels (OpenAI's vision guide).
IMAGE_TOKENS = {"low": 630, "high": 3_780, "auto": 30_000}

#: The most input of a model of which nothing is known: that of the largest.
CONTEXT_TOKENS = 1_050_000

# Where a likely figure is enough: an image of 1,024 x 1,024 pixels; and of an mp3 in
# base64, how much holds a token, which is a tenth of a second.
_LIKELY_IMAGE_TOKENS = 1_024
_LIKELY_AUDIO_LENGTH = 2_000

# What frames a message, and begins the answer (OpenAI's cookbook, for GPT-4o and later).
_MESSAGE_TOKENS = 3
_NAME_TOKENS = 1
_ANSWER_TOKENS = 3

# The same for a bound, generously, and for a body, any object and any field in it.
_MOST_OF_BODY = 32
_MOST_OF_OBJECT = 12
_MOST_OF_FIELD = 4

#: What the model is asked; the rest of a body steers the service.
_PROMPT = (
    "messages",
    "input",
    "prompt",
    "instructions",
    "suffix",
    "tools",
    "functions",
    "response_format",
    "text",
)
#: Fields of a body by which input comes from elsewhere.
_ELSEWHERE = ("previous_response_id", "conversation", "web_search_options")
#: Tools that the caller runs; what any other adds is known to the service only.
_OWN_TOOLS = frozenset({"function", "custom"})

_WITHOUT_OUTPUT = frozenset({"/embeddings", "/moderations"})


# Counting


def count(text: str, model: str | None = None) -> int:
    """Return how many tokens a text has, offline.

    Args:
        text: What looks like a special token, such as "<|endoftext|>", is text.
        model: Whose vocabulary counts; one that is not known counts as the latest do.

    Raises:
        InvalidInput: The text is no string.
    """
    private = Private[Sequence[str]]([text])
    del text
    return _counts(private, model)[0]


def count_many(texts: Sequence[str], model: str | None = None) -> list[int]:
    """Return how many tokens each text has, offline; see `count`.

    Raises:
        InvalidInput: ``texts`` is no list or tuple, or holds what is no string.
    """
    private = Private(texts)
    del texts
    if fault := collection_fault(private.reveal()):
        raise InvalidInput(fault)
    return _counts(private, model)


def count_messages(messages: Sequence[Mapping[str, Any]], model: str | None = None) -> int:
    """Return how many input tokens the messages of a chat completion come to, offline.

    Texts are counted, and framed as OpenAI tells; the JSON of calls of tools is counted
    in place of what the service makes of it, and an image as of 1,024 x 1,024 pixels.

    Raises:
        InvalidInput: A message is no dict.
    """
    private = Private(messages)
    del messages
    for position, message in enumerate(map(Private, private.reveal())):
        if kind := _kind_unless(Mapping, message):
            raise InvalidInput(
                f'messages[{position}] is of type {kind}, not a dict with "role" and "content".'
            )
    sizes = _Sizes(_counter(model))
    sizes.add(list(private.reveal()))
    return sizes.likely + _ANSWER_TOKENS


def _counts(texts: Private[Sequence[str]], model: str | None) -> list[int]:
    for position, text in enumerate(map(Private, texts.reveal())):
        if kind := _kind_unless(str, text):
            raise InvalidInput(f"texts[{position}] is of type {kind}, not a string.")
    return list(map(_counter(model), texts.reveal()))


def _kind_unless(expected: type, value: Private[Any]) -> str:
    found = value.reveal()
    return "" if isinstance(found, expected) else type(found).__name__


def _counter(model: str | None) -> Callable[[str], int]:
    known = catalogue.find(model)
    return vocabulary.counter(known.encoding if known else catalogue.ENCODING)


# Bounding


def upper_bound(body: Mapping[str, Any] | bytes, model: str | None = None) -> int:
    """Return the most input tokens that a request can have.

    A conversation that the service keeps, a file, a recording, and a tool that the
    service runs, such as a web search, have a length that nobody here knows: the
    model's context size bounds them, for one turn. A tool of the service may take
    several turns, so that what it adds is known only when it is settled.

    Args:
        body: The request's decoded JSON, or its bytes.
        model: Its model, where the body does not name it, as with Azure.
    """
    body = _decoded(body)
    known = catalogue.find(model or _text_of(body, "model"))
    sizes = _sizes_of(body, known.image_tokens if known else None)
    if sizes.is_unknown:
        return known.context_tokens or CONTEXT_TOKENS if known else CONTEXT_TOKENS
    return sizes.most + _MOST_OF_BODY


def estimate(body: Mapping[str, Any] | bytes) -> int:
    """Return about how many input tokens a request has: quick, for rate limits.

    A text of 4 ASCII characters, or of 3 bytes of another script, counts one token.
    What the service keeps counts none.

    Args:
        body: The request's decoded JSON, or its bytes.
    """
    return _sizes_of(_decoded(body)).likely + _ANSWER_TOKENS


def estimate_text(text: str) -> int:
    """Return about how many tokens a text has: quick, as for an answer without usage."""
    length = utf8_length(text)
    # ASCII text is as long as its bytes.
    return -(-length // 4) if length == len(text) else -(-length // 3)


def utf8_length(text: str) -> int:
    """Return a text's bytes in UTF-8, of which it never has fewer than tokens."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def output_bound(body: Mapping[str, Any]) -> int | None:
    """Return the most tokens of each answer that a request allows; None if it sets no limit."""
    for key in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        limit = body.get(key)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0:
            return limit
    return None


def most_expensive(
    body: Mapping[str, Any] | bytes,
    *,
    endpoint: str = "",
    model: str | None = None,
    prices: catalogue.Prices = catalogue.NO_PRICES,
) -> Decimal | None:
    """Return the most that a request can cost, in US dollars: what a budget reserves.

    Args:
        body: The request's decoded JSON, or its bytes.
        endpoint: Its path after the base URL; "/embeddings" and "/moderations" have no output.
        model: As of `upper_bound`.
        prices: The project's own, as ``OpenAISettings.prices``.

    Returns:
        None if the price is not known, or how long the answer may become.
    """
    body = _decoded(body)
    name = model or _text_of(body, "model")
    known, bound = catalogue.find(name), upper_bound(body, model)
    if known and known.kind == "chat" and known.context_tokens:
        bound = min(bound, known.context_tokens)  # a longer one is refused, and costs nothing
    cache = body.get("prompt_cache_options")
    return catalogue.most_expensive(
        name,
        bound,
        0 if endpoint in _WITHOUT_OUTPUT else output_bound(body),
        answers=max(_number_of(body, "n"), _number_of(body, "best_of")),
        service_tier=_text_of(body, "service_tier"),
        keeps_cache=isinstance(cache, Mapping) and cache.get("ttl") == "12h",
        prices=prices,
    )


# Looking at a body


def _decoded(body: Mapping[str, Any] | bytes) -> Mapping[str, Any]:
    if not isinstance(body, bytes):
        return body
    try:
        decoded = json.loads(body)
    except ValueError:
        decoded = None
    # What is no JSON object has no more tokens than bytes all the same.
    return decoded if isinstance(decoded, dict) else {"input": body.decode("latin-1")}


def _text_of(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return value if isinstance(value, str) else ""


def _number_of(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    return value if isinstance(value, int) else 1


def _sizes_of(body: Mapping[str, Any], image_tokens: int | None = None) -> _Sizes:
    sizes = _Sizes(estimate_text, image_tokens)
    sizes.is_unknown = any(body.get(key) is not None for key in _ELSEWHERE) or (
        # Kept with the service too: a prompt by its id.
        isinstance(body.get("prompt"), Mapping)
    )
    for key in _PROMPT:
        value = body.get(key)
        if key in ("input", "prompt") and isinstance(value, list) and _holds_tokens(value):
            sizes.add_tokens(value)
        elif key == "tools" and isinstance(value, list):
            sizes.add_tools(value)
        elif value is not None:
            sizes.add(value)
    return sizes


def _holds_tokens(value: list[Any]) -> bool:
    """Tell whether an input is an array of tokens, or of such arrays."""
    first = value[0] if value else None
    return isinstance(first[0] if isinstance(first, list) and first else first, int)


class _Sizes:
    """What the parts of a request come to, added up.

    Args:
        text: Returns the likely tokens of a text.
        image_tokens: The most of an image, where the model has a figure of its own.
    """

    __slots__ = ("_image_tokens", "_text", "is_unknown", "likely", "most")

    def __init__(self, text: Callable[[str], int], image_tokens: int | None = None) -> None:
        self.most = 0  # tokens, but for what is unknown
        self.likely = 0
        self.is_unknown = False  # some of it lies where nobody here sees it
        self._text = text
        self._image_tokens = image_tokens

    def add(self, value: Any) -> None:
        """Add decoded JSON, of any depth."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                self._add_text(value)
            elif isinstance(value, Mapping):
                waiting += self._add_object(value)
            elif isinstance(value, (list, tuple)):
                waiting += value
            elif value is not None:
                self._add_text(str(value))

    def add_tokens(self, value: list[Any]) -> None:
        """Add arrays of tokens."""
        number = sum(len(item) if isinstance(item, list) else 1 for item in value)
        self.most += number
        self.likely += number

    def add_tools(self, tools: list[Any]) -> None:
        for tool in tools:
            kind = tool.get("type") if isinstance(tool, Mapping) else None
            self.is_unknown |= kind not in _OWN_TOOLS
            self.add(tool)

    def _add_text(self, text: str) -> None:
        self.most += utf8_length(text)
        self.likely += self._text(text)

    def _add_object(self, value: Mapping[str, Any]) -> list[Any]:
        """Add an object, and return those of its values that remain to be added."""
        kind = value.get("type")
        self.most += _MOST_OF_OBJECT
        if isinstance(kind, str) and kind in _PARTS:
            return _PARTS[kind](self, value)
        self.most += sum(utf8_length(str(key)) + _MOST_OF_FIELD for key in value)
        if "role" in value:
            self.likely += _MESSAGE_TOKENS + (_NAME_TOKENS if value.get("name") else 0)
        else:
            self.likely += sum(self._text(str(key)) for key in value)
        return list(value.values())

    def _add_text_part(self, part: Mapping[str, Any]) -> list[Any]:
        return [part["text"]] if "text" in part else list(part.values())

    def _add_image(self, part: Mapping[str, Any]) -> list[Any]:
        nested = part.get("image_url")
        detail = (nested if isinstance(nested, Mapping) else part).get("detail")
        most = IMAGE_TOKENS.get(detail) if isinstance(detail, str) else None
        self.most += self._image_tokens or most or IMAGE_TOKENS["auto"]
        self.likely += _LIKELY_IMAGE_TOKENS
        return []

    def _add_audio(self, part: Mapping[str, Any]) -> list[Any]:
        audio = part.get("input_audio")
        data = audio.get("data") if isinstance(audio, Mapping) else None
        self.likely += len(data) // _LIKELY_AUDIO_LENGTH if isinstance(data, str) else 0
        return self._add_unknown(part)

    def _add_unknown(self, part: Mapping[str, Any]) -> list[Any]:
        del part
        self.is_unknown = True
        return []


#: What is counted otherwise than by its JSON: by the type of a part, or of an input's item.
_PARTS: dict[str, Callable[[_Sizes, Mapping[str, Any]], list[Any]]] = {
    "text": _Sizes._add_text_part,
    "input_text": _Sizes._add_text_part,
    "output_text": _Sizes._add_text_part,
    "image_url": _Sizes._add_image,
    "input_image": _Sizes._add_image,
    "computer_screenshot": _Sizes._add_image,
    "image_generation_call": _Sizes._add_image,
    "input_audio": _Sizes._add_audio,
    "file": _Sizes._add_unknown,
    "input_file": _Sizes._add_unknown,
    "item_reference": _Sizes._add_unknown,
}
