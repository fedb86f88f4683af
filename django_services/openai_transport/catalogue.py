"""What is known of OpenAI's models: kind, sizes, prices, shutdown dates.

The figures are data, ``data/models.toml``, each entry with its source and the day
that it is of. One that no source tells is None, and so is a cost that needs it:
what is not known is never taken for 0. ``DJANGO_SERVICES["OPENAI"][alias]["PRICES"]``
overrides and extends the prices. The file is read once, on first use.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, NamedTuple

from .usage import Usage

#: How models cut a text into tokens, unless the catalogue says otherwise.
ENCODING = "o200k_base"

#: Prices as a project sets them: by model, US dollars for a million tokens.
Prices = Mapping[str, Mapping[str, float]]

NO_PRICES: Prices = MappingProxyType({})
_NANO_DOLLAR = Decimal("1e-9")
_MILLION = 1_000_000
# No figure here has so many digits that a product of two would be rounded.
_EXACT = Context(prec=50)

#: A dated snapshot: "gpt-6-luna-2026-08-01".
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")

#: What the API calls the processing that is not priced as usual, by the catalogue's name.
_TIERS = {
    "flex": "flex",
    "fast": "fast",
    "priority": "fast",
    "ultrafast": "ultrafast",
    "scale": "scale",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for a million tokens, and factors on them; None where it is not known."""

    input: Decimal | None = None
    cached_input: Decimal | None = None  # read from the prompt cache
    cache_write: Decimal | None = None  # factor on `input`: written to it, for 30 minutes
    cache_write_12h: Decimal | None = None  # factor on `input`: the same, for 12 hours
    output: Decimal | None = None
    long_context: int | None = None  # input tokens, above which a request costs more
    long_input: Decimal = Decimal(1)  # factor on all of such a request's input
    long_output: Decimal = Decimal(1)  # factor on its output
    #: Factors on everything, of "batch", "flex", "fast" and "ultrafast" processing.
    factors: Mapping[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known of one model; None where it is not."""

    name: str
    kind: str  # "chat", "embedding", "moderation" or "image"
    dimensions: int | None = None  # of an embedding model's vectors, unless fewer are asked for
    context_tokens: int | None = None  # of input and output; of each text to embed
    max_output_tokens: int | None = None  # of one answer
    encoding: str = ENCODING
    image_tokens: int | None = None  # the most of one, where `tokens.IMAGE_TOKENS` is not
    shutdown: datetime.date | None = None  # the day from which it no longer answers
    price: Price | None = None
    source: str
    as_of: datetime.date


class _Rates(NamedTuple):
    """US dollars for a million tokens of one request, all factors in it."""

    input: Decimal | None
    cached: Decimal | None
    written: Decimal | None
    written_12h: Decimal | None
    output: Decimal | None


def find(name: str | None) -> Model | None:
    """Return what is known of a model; None of one that is not in the catalogue.

    Args:
        name: As a request names it. A dated snapshot without an entry of its own is
            its model, and the provider that a gateway puts in front is left out:
            "openai/gpt-6-luna-2026-08-01" is "gpt-6-luna".
    """
    return _resolved(name) if name else None


def names() -> list[str]:
    """Return the names of all models in the catalogue."""
    return list(_models())


def cost(
    model: str | None, usage: Usage, *, prices: Prices = NO_PRICES, is_batch: bool = False
) -> Decimal | None:
    """Return what an operation cost, in US dollars, exact to a billionth.

    Tokens only: hosted tools, such as a web search, cost a fee for each call besides,
    and processing in a region of the project's choice a tenth more.

    Args:
        model: As the request, or better the answer, names it.
        usage: The tokens, of which the cached and written ones are part of the input.
        prices: The project's own, as ``OpenAISettings.prices``.
        is_batch: Whether it went through the Batch API.

    Returns:
        None if the price, or the number of tokens, is not known.
    """
    price = price_of(model, prices)
    if price is None or usage.input_tokens is None:
        return None
    tier = "batch" if is_batch else usage.service_tier
    with localcontext(_EXACT):
        rates = _rates(price, usage.input_tokens, tier)
        if rates is None or (usage.output_tokens is None and rates.output):
            return None
        return _sum(_charges(rates, usage, usage.input_tokens), ROUND_HALF_EVEN)


def most_expensive(
    model: str | None,
    input_tokens: int,
    output_tokens: int | None = None,
    *,
    answers: int = 1,
    service_tier: str = "",
    keeps_cache: bool = False,
    prices: Prices = NO_PRICES,
    is_batch: bool = False,
) -> Decimal | None:
    """Return the most that a request can cost, in US dollars: what a budget reserves.

    Args:
        model: As the request names it.
        input_tokens: The most that the request can have; see `tokens.upper_bound`.
        output_tokens: The most of each answer that the request allows; the model's
            maximum if None.
        answers: How many it asks for (``n``).
        service_tier: The one that it asks for.
        keeps_cache: Whether it asks to keep the prompt cached for twelve hours.
        prices: The project's own, as ``OpenAISettings.prices``.
        is_batch: Whether it goes through the Batch API.

    Returns:
        None if the price is not known, or how long the answer may become.
    """
    price = price_of(model, prices)
    if price is None:
        return None
    with localcontext(_EXACT):
        rates = _rates(price, input_tokens, "batch" if is_batch else service_tier)
        if rates is None or rates.input is None:
            return None
        if keeps_cache and price.cache_write and rates.written_12h is None:
            return None
        dearest = max(rate for rate in _input_rates(rates, keeps_cache) if rate is not None)
        longest = _longest_output(model, output_tokens, rates.output)
        if longest is None:
            return None
        charges = [(input_tokens, dearest), (longest * max(answers, 1), rates.output)]
        return _sum(iter(charges), ROUND_CEILING)


def price_of(model: str | None, prices: Prices = NO_PRICES) -> Price | None:
    """Return a model's price: the catalogue's, with what the project says in its place.

    Args:
        model: As a request names it.
        prices: The project's own. ``INPUT``, ``CACHED_INPUT``, ``OUTPUT`` and ``BATCH``
            each stand for themselves; of a model that the catalogue has no price of,
            cached input costs as much as other input unless it is said.
    """
    known = find(model)
    price = known.price if known else None
    if not prices or not model:
        return price
    own = prices.get(model) or prices.get(known.name if known else _without_provider(model))
    return _overridden(price or _UNPRICED, own) if own else price


#: Where the project alone says the price: the prompt cache costs nothing extra.
_UNPRICED = Price(cache_write=Decimal(1), cache_write_12h=Decimal(1))


# Finding


@lru_cache(maxsize=1_024)
def _resolved(name: str) -> Model | None:
    models = _models()
    bare = _without_provider(name)
    return models.get(name) or models.get(bare) or models.get(_SNAPSHOT.sub("", bare))


def _without_provider(name: str) -> str:
    return name.rsplit("/", 1)[-1]


@cache
def _models() -> Mapping[str, Model]:
    import tomllib

    text = files(__package__).joinpath("data", "models.toml").read_text(encoding="utf-8")
    return {model.name: model for entry in tomllib.loads(text)["model"] for model in _read(entry)}


def _read(entry: dict[str, Any]) -> Iterator[Model]:
    names, price = entry.pop("names"), entry.pop("price", None)
    for name in names:
        yield Model(name=name, price=_price(price) if price else None, **entry)


def _price(entry: Mapping[str, Any]) -> Price:
    # Strings, since TOML's numbers are binary ones.
    figures: dict[str, Any] = {
        name: Decimal(figure) if isinstance(figure, str) else figure
        for name, figure in entry.items()
    }
    factors = figures.pop("factors", {})
    return Price(
        **figures, factors={processing: Decimal(factor) for processing, factor in factors.items()}
    )


def _overridden(price: Price, own: Mapping[str, float]) -> Price:
    # By way of a string: 0.1 is meant, and not the binary number next to it.
    given = {key: Decimal(str(figure)) for key, figure in own.items()}
    factors = dict(price.factors)
    if "BATCH" in given:
        factors["batch"] = given["BATCH"]
    cached = given.get("CACHED_INPUT", price.cached_input)
    return replace(
        price,
        input=given.get("INPUT", price.input),
        cached_input=given.get("INPUT") if cached is None else cached,
        output=given.get("OUTPUT", price.output),
        factors=factors,
    )


# Charging


def _rates(price: Price, input_tokens: int, processing: str) -> _Rates | None:
    """Return what a request of this size costs; None if its processing has no known price."""
    factor = _factor(price, processing)
    if factor is None:
        return None
    is_long = price.long_context is not None and input_tokens > price.long_context
    on_input = factor * price.long_input if is_long else factor
    on_output = factor * price.long_output if is_long else factor
    plain = _times(price.input, on_input)
    return _Rates(
        input=plain,
        cached=_times(price.cached_input, on_input),
        written=_times(plain, price.cache_write),
        written_12h=_times(plain, price.cache_write_12h),
        output=_times(price.output, on_output),
    )


def _factor(price: Price, processing: str) -> Decimal | None:
    name = "batch" if processing == "batch" else _TIERS.get(processing)
    return price.factors.get(name) if name else Decimal(1)


def _times(price: Decimal | None, factor: Decimal | None) -> Decimal | None:
    return None if price is None or factor is None else price * factor


def _charges(
    rates: _Rates, usage: Usage, input_tokens: int
) -> Iterator[tuple[int, Decimal | None]]:
    cached, written, kept = usage.cached_tokens, usage.written_tokens, usage.written_12h_tokens
    yield max(input_tokens - cached - written - kept, 0), rates.input
    yield cached, rates.cached
    yield written, rates.written
    yield kept, rates.written_12h
    yield usage.output_tokens or 0, rates.output


def _input_rates(rates: _Rates, keeps_cache: bool) -> tuple[Decimal | None, ...]:
    kept = rates.written_12h if keeps_cache else None
    return rates.input, rates.cached, rates.written, kept


def _longest_output(model: str | None, asked: int | None, rate: Decimal | None) -> int | None:
    """Return the most tokens of an answer; None if it is not known and costs something."""
    if asked is not None or rate == 0:
        return asked or 0
    known = find(model)
    return known.max_output_tokens if known else None


def _sum(charges: Iterator[tuple[int, Decimal | None]], rounding: str) -> Decimal | None:
    total = Decimal(0)
    for tokens, rate in charges:
        if tokens and rate is None:
            return None
        if tokens and rate:
            total += tokens * rate
    return (total / _MILLION).quantize(_NANO_DOLLAR, rounding=rounding)
