"""django_services.openai_transport.catalogue: what models cost, by figures worked out by hand."""

from __future__ import annotations

import datetime
from decimal import Decimal, getcontext, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_services import conf
from django_services.openai_service import embedding_space
from django_services.openai_transport import catalogue
from django_services.openai_transport.catalogue import Price, cost, find, most_expensive
from django_services.openai_transport.usage import UNKNOWN, Usage, usage_in

#: gpt-6-luna: $0.10 in, $0.01 cached, 1.25 x in to write the cache, $0.50 out, a million.
LUNA = "gpt-6-luna"


def usage(asked: int, output: int = 0, **more) -> Usage:
    return Usage(input_tokens=asked, output_tokens=output, **more)


# The data


@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_has_a_source_a_day_and_sound_figures(name):
    model = find(name)

    assert model.source
    assert model.as_of >= datetime.date(2025, 7, 1)
    assert model.kind in {"chat", "embedding", "moderation", "image"}
    assert (model.dimensions is not None) == (model.kind == "embedding")
    if model.price:
        assert model.price.input is not None
        assert model.price.output is not None


def test_no_name_stands_in_two_entries():
    import tomllib
    from importlib.resources import files

    path = files("django_services.openai_transport") / "data" / "models.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["model"]

    every = [name for entry in entries for name in entry["names"]]

    assert len(every) == len(set(every)) == len(catalogue.names())


@pytest.mark.parametrize("role", ["model", "embedding_model", "moderation_model"])
def test_the_default_models_are_known_and_stay(role):
    model = find(getattr(conf.OpenAISettings(), role))

    assert model.price is not None
    assert model.shutdown is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (LUNA, LUNA),
        ("openai/gpt-6-luna", LUNA),
        ("gateway/openai/gpt-6-luna", LUNA),
        ("gpt-6-luna-2026-08-01", LUNA),
        ("openai/gpt-6-luna-2026-08-01", LUNA),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("gpt-4o-2024-11-20", "gpt-4o-2024-11-20"),
        ("gpt-6-lun", None),
        ("gpt-6-luna-mini", None),
        ("ft:gpt-6-luna:org::1", None),
        ("", None),
        (None, None),
    ],
)
def test_find(name, found):
    model = find(name)

    assert (model and model.name) == found


def test_a_snapshot_of_its_own_keeps_its_own_shutdown_date():
    assert find("gpt-4o").shutdown == datetime.date(2027, 1, 14)
    assert find("gpt-4o-2024-05-13").shutdown == datetime.date(2026, 10, 23)


def test_the_file_is_read_once(monkeypatch):
    find(LUNA)
    monkeypatch.setattr(catalogue, "files", lambda *_: pytest.fail("read again"))

    assert find("another model") is None


@pytest.mark.parametrize(
    ("model", "dimensions"),
    [
        ("text-embedding-3-small", 1_536),
        ("openai/text-embedding-3-large", 3_072),
        ("text-embedding-ada-002", 1_536),
    ],
)
def test_the_dimensions_of_embeddings_come_from_it(settings, model, dimensions):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-1"}}}

    assert embedding_space(model=model) == (model, dimensions)


# What a call cost


@pytest.mark.parametrize(
    ("model", "used", "dollars"),
    [
        # 1,000 x 0.10 + 100 x 0.50 = 150 millionths of a dollar
        (LUNA, usage(1_000, 100), "0.00015"),
        # 800 x 0.10 + 200 x 0.01 + 100 x 0.50 = 132
        (LUNA, usage(1_000, 100, cached_tokens=200), "0.000132"),
        # 500 x 0.10 + 200 x 0.01 + 300 x 0.125 + 100 x 0.50 = 139.5
        (LUNA, usage(1_000, 100, cached_tokens=200, written_tokens=300), "0.0001395"),
        # At the threshold: 272,000 x 0.10 = 27,200; above: 272,001 x 0.20 and 1,000 x 0.75
        (LUNA, usage(272_000), "0.0272"),
        (LUNA, usage(272_001, 1_000), "0.0551502"),
        # 100,000 x 0.20 + 200,000 x 0.02
        (LUNA, usage(300_000, cached_tokens=200_000), "0.024"),
        # Twice, and half, the standard price of 150
        (LUNA, usage(1_000, 100, service_tier="priority"), "0.0003"),
        (LUNA, usage(1_000, 100, service_tier="flex"), "0.000075"),
        (LUNA, usage(1_000, 100, service_tier="default"), "0.00015"),
        # 1,000,000 x 2.5 x 1 (kept for twelve hours, above 272,000: twice)
        ("gpt-6.1-terra", usage(1_000_000, written_12h_tokens=1_000_000), "5"),
        ("gpt-6-astra", usage(1, 1), "0.00006"),
        ("text-embedding-3-small", usage(1), "0.00000002"),
        ("text-embedding-3-small", Usage(input_tokens=7), "0.00000014"),
        ("omni-moderation-latest", usage(1_000), "0"),
        (LUNA, usage(0, 0), "0"),
    ],
)
def test_cost(model, used, dollars):
    assert cost(model, used) == Decimal(dollars)


@pytest.mark.parametrize(
    ("model", "used", "dollars"),
    [
        (LUNA, usage(1_000, 100), "0.000075"),
        (LUNA, usage(300_000, 1_000), "0.030375"),
        ("text-embedding-3-small", usage(1_000_000), "0.01"),
        ("text-embedding-3-large", usage(1_000_000), "0.065"),
    ],
)
def test_a_batch_costs_half(model, used, dollars):
    assert cost(model, used, is_batch=True) == Decimal(dollars)


@pytest.mark.parametrize(
    ("model", "used"),
    [
        ("unknown", usage(10)),
        (None, usage(10)),
        ("gpt-5.5", usage(10)),
        (LUNA, UNKNOWN),
        (LUNA, Usage(input_tokens=10)),
        (LUNA, usage(10, written_12h_tokens=10)),
        (LUNA, usage(10, service_tier="ultrafast")),
        ("gpt-5.4", usage(10, service_tier="flex")),
    ],
)
def test_what_is_not_known_costs_none_and_not_nothing(model, used):
    assert cost(model, used) is None


def test_no_batch_price_is_none(monkeypatch):
    monkeypatch.setattr(catalogue, "price_of", lambda *_: Price(input=Decimal(1)))

    assert cost(LUNA, usage(10), is_batch=True) is None


def test_a_cost_is_exact_whatever_the_project_does_with_decimals():
    with localcontext() as context:
        context.prec = 3

        assert cost(LUNA, usage(123_457, 1)) == Decimal("0.0123462")
        assert getcontext().prec == 3


def test_more_cached_than_given_costs_no_less_than_nothing():
    assert cost(LUNA, usage(10, cached_tokens=20)) == Decimal("0.0000002")


def test_what_an_answer_tells_is_charged():
    told = {
        "prompt_tokens": 1_000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 300},
    }

    assert cost(LUNA, usage_in({"usage": told})) == Decimal("0.0001395")
    assert cost(LUNA, usage_in({"usage": told, "service_tier": "priority"})) == Decimal("0.000279")


def test_tokens_kept_for_twelve_hours_are_told_apart():
    details = {"cache_write_tokens": 9, "cache_write_tokens_details": {"ttl_12h_tokens": 4}}
    told = {"input_tokens": 10, "output_tokens": 1, "input_tokens_details": details}

    found = usage_in({"usage": told})

    assert (found.written_tokens, found.written_12h_tokens) == (5, 4)


# The project's own prices


@pytest.mark.parametrize(
    ("model", "own", "dollars"),
    [
        ("mine", {"INPUT": 1, "CACHED_INPUT": 0.1, "OUTPUT": 5}, "0.00142"),  # 800 + 20 + 600
        ("mine", {"INPUT": 1, "OUTPUT": 5}, "0.0016"),  # cached input costs no less
        ("mine", {"INPUT": 0, "OUTPUT": 0}, "0"),
        ("gateway/mine", {"INPUT": 1, "OUTPUT": 5}, "0.0016"),
        ("mine", {"OUTPUT": 5}, None),
        ("mine", {"INPUT": 5}, None),
        (LUNA, {"OUTPUT": 1}, "0.000202"),  # 80 + 2 + 120, the rest as it was
        ("openai/gpt-6-luna-2026-08-01", {"INPUT": 1}, "0.000862"),  # 800 + 2 + 60
    ],
)
def test_the_projects_prices_override_and_extend(model, own, dollars):
    name = catalogue.find(model).name if catalogue.find(model) else "mine"

    found = cost(model, usage(1_000, 120, cached_tokens=200), prices={name: own})

    assert found == (dollars and Decimal(dollars))


def test_a_price_of_exactly_this_name_comes_first():
    prices = {LUNA: {"INPUT": 1}, "openai/gpt-6-luna": {"INPUT": 2}}

    assert cost("openai/gpt-6-luna", usage(10), prices=prices) == Decimal("0.00002")


def test_a_factor_for_batches_is_the_projects_own_too():
    prices = {"mine": {"INPUT": 1, "BATCH": 0.25}}

    assert cost("mine", usage(1_000), prices=prices, is_batch=True) == Decimal("0.00025")


def test_an_embedding_model_of_another_server_needs_no_price_of_output():
    assert cost("mine", Usage(input_tokens=10), prices={"mine": {"INPUT": 0.1}}) == Decimal("1E-6")


# What a call costs at most


@pytest.mark.parametrize(
    ("arguments", "dollars"),
    [
        # 1,000 x 0.125 (all of it may be written to the cache) + 100 x 0.50
        ({"input_tokens": 1_000, "output_tokens": 100}, "0.000175"),
        ({"input_tokens": 1_000, "output_tokens": 100, "answers": 3}, "0.000275"),
        ({"input_tokens": 1_000, "output_tokens": 0}, "0.000125"),
        # 128,000, the model's maximum, x 0.50
        ({"input_tokens": 0}, "0.064"),
        ({"input_tokens": 300_000, "output_tokens": 100}, "0.075075"),
        ({"input_tokens": 1_000, "output_tokens": 100, "service_tier": "fast"}, "0.00035"),
        ({"input_tokens": 1_000, "output_tokens": 100, "is_batch": True}, "0.0000875"),
        ({"input_tokens": 1_000, "output_tokens": 1, "keeps_cache": True}, None),
        ({"input_tokens": 1_000, "output_tokens": 1, "service_tier": "ultrafast"}, None),
    ],
)
def test_most_expensive(arguments, dollars):
    assert most_expensive(LUNA, **arguments) == (dollars and Decimal(dollars))


@pytest.mark.parametrize(
    ("model", "output_tokens", "dollars"),
    [
        ("unknown", 10, None),
        (None, 10, None),
        ("gpt-5-mini", None, None),  # no maximum known
        ("gpt-5-mini", 10, "0.000045"),
        ("text-embedding-3-small", None, "0.000002"),
        ("omni-moderation-latest", None, "0"),
        ("gpt-6.1-terra", 0, "0.000125"),
    ],
)
def test_most_expensive_of_other_models(model, output_tokens, dollars):
    assert most_expensive(model, 100, output_tokens) == (dollars and Decimal(dollars))


def test_a_cache_kept_for_long_costs_more():
    assert most_expensive("gpt-6.1-terra", 100, 0, keeps_cache=True) == Decimal("0.00025")


def test_the_projects_prices_bound_its_own_models():
    prices = {"mine": {"INPUT": 1, "CACHED_INPUT": 2, "OUTPUT": 5}}

    assert most_expensive("mine", 10, 10, prices=prices) == Decimal("0.00007")
    assert most_expensive("mine", 10, prices=prices) is None


def test_a_bound_is_rounded_up():
    prices = {"mine": {"INPUT": 0.0001, "OUTPUT": 0}}

    assert most_expensive("mine", 1, 0, prices=prices) == Decimal("1e-9")
    assert most_expensive("mine", 10, 0, prices={"mine": {"INPUT": 0.1}}) == Decimal("1e-6")
    assert cost("mine", usage(1), prices=prices) == 0


@given(
    model=st.sampled_from([name for name in catalogue.names() if find(name).price]),
    parts=st.tuples(*[st.integers(0, 400_000)] * 4),
    output=st.integers(0, 128_000),
    spare=st.integers(0, 300_000),
    tier=st.sampled_from(["", "flex", "priority", "ultrafast"]),
)
def test_no_call_costs_more_than_its_bound(model, parts, output, spare, tier):
    _, cached, written, kept = parts
    used = Usage(
        input_tokens=sum(parts),
        cached_tokens=cached,
        written_tokens=written,
        written_12h_tokens=kept,
        output_tokens=output,
        service_tier=tier,
    )

    spent = cost(model, used)
    bound = most_expensive(
        model, sum(parts) + spare, output + spare, service_tier=tier, keeps_cache=kept > 0
    )

    assert spent is None or spent <= bound
