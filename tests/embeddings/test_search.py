"""A search is a lazy queryset: what it finds, and what may be done with it."""

from __future__ import annotations

import functools
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from asgiref.sync import async_to_sync
from django.contrib.admin import ModelAdmin, site
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Avg, Count, Exists, F, OuterRef, Prefetch, Q, Subquery, Window
from django.db.models.functions import RowNumber
from django.test import RequestFactory

from django_services import embedded, openai_service
from django_services.embeddings import search_plan
from django_services.embeddings.models import Space
from django_services.embeddings.search import ModelAccessor, SearchQuerySet
from django_services.exceptions import DimensionMismatch, InvalidInput
from tests.testapp.models import (
    Article,
    BlogPost,
    Book,
    Category,
    FeaturedArticle,
    Note,
    Page,
    Plain,
    Product,
    Restaurant,
    Service,
    Tag,
)

from .stored import brute_force, new_space, random_vectors, store

#: Every claim holds with the plan and without: it may only change the time.
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.parametrize(
        ("database", "plan"),
        [("sqlite", "planned"), ("sqlite", "in SQL alone"), ("postgresql", "planned")],
        indirect=True,
        scope="class",
    ),
]

QUERY = random_vectors(1, seed=99)[0]
ROWS = 120
CHUNKS = 3


@pytest.fixture(scope="class", autouse=True)
def plan(database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in SQL alone":
            patch.setattr(search_plan, "IN_MEMORY", frozenset())
            patch.setattr(search_plan, "INDEXED", frozenset())
        yield request.param


class Library:
    """Articles with stored vectors, and the order in which a search must find them."""

    def __init__(self) -> None:
        self.categories = [Category.objects.create(name=f"c{n}") for n in range(4)]
        self.tags = [Tag.objects.create(name=f"t{n}") for n in range(3)]
        self.articles = Article.objects.bulk_create(
            Article(title=f"a{n}", category=self.categories[n % 4], views=n * 7 % 50)
            for n in range(ROWS)
        )
        through = Article.tags.through
        through.objects.bulk_create(
            through(article_id=article.pk, tag_id=tag.pk)
            for n, article in enumerate(self.articles)
            for tag in self.tags[: n % 4]
        )
        self.index = Article.embeddings.index
        self.space = new_space(self.index)
        vectors = random_vectors(ROWS * CHUNKS, seed=1)
        store(
            self.index,
            self.space,
            {a: vectors[n * CHUNKS : (n + 1) * CHUNKS] for n, a in enumerate(self.articles)},
        )

    def expected(self, rows: Any = None) -> list[Any]:
        rows = Article.objects.all() if rows is None else rows
        return brute_force(self.index, self.space, QUERY, rows.values_list("pk", flat=True))


@pytest.fixture
def library() -> Library:
    return Library()


def search(**options: Any) -> Any:
    return Article.embeddings.nearest(QUERY, **options)


def keys(rows: Any) -> list[Any]:
    return [row.pk for row in rows]


# Which rows, in which order


def test_hits_are_those_of_brute_force_in_its_order(library, plan):
    assert keys(search()[:10]) == library.expected()[:10]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 25), (100, 110), (115, 500), (0, 10**9)])
def test_slices_are_exact_at_any_depth(library, plan, start, stop):
    assert keys(search(max_hits=7)[start:stop]) == library.expected()[start:stop]


@pytest.mark.parametrize(
    "condition",
    [
        Q(category__name="c1"),
        Q(views__lt=3),
        Q(views=-1),
        ~Q(category__name="c1"),
        Q(category__name="c0") | Q(views__gt=45),
        Q(tags__name="t2"),
        Q(tags__name__in=["t0", "t1", "t2"]),
        ~Q(tags__name="t0"),
        Q(category__article__tags__name="t1") & Q(views__gt=10),
    ],
    ids=str,
)
def test_filters_before_and_after_give_the_same_exact_hits(library, plan, condition):
    expected = library.expected(Article.objects.filter(condition))

    before = Article.objects.filter(condition).nearest(QUERY)
    after = search().filter(condition)

    assert keys(before) == keys(after) == expected
    assert keys(after[3:8]) == expected[3:8]
    assert after.count() == len(expected)


def test_there_is_one_hit_for_each_source_though_many_tags_match(library, plan):
    hits = search().filter(tags__name__in=["t0", "t1", "t2"])

    assert len(hits) == len(set(keys(hits))) == hits.count() == 90


def test_aggregate_after_a_many_valued_filter_counts_each_hit_once(library, plan):
    expected = Article.objects.filter(Exists(Tag.objects.filter(article=OuterRef("pk"))))

    got = search().filter(tags__name__in=["t0", "t1", "t2"]).aggregate(mean=Avg("views"))

    assert got == expected.aggregate(mean=Avg("views"))


def test_an_unsliced_search_is_its_max_hits_nearest(library, plan):
    hits = search(max_hits=20)

    assert keys(hits) == library.expected()[:20]
    assert hits.count() == len(hits) == 20
    assert hits.exists()
    assert sorted(keys(hits.order_by("-views"))) == sorted(library.expected()[:20])
    assert hits.aggregate(n=Count("pk"))["n"] == 20


def test_max_hits_come_from_the_settings(library, plan, settings):
    settings.DJANGO_SERVICES = {**settings.DJANGO_SERVICES, "EMBEDDINGS": {"MAX_HITS": 5}}

    assert keys(search()) == library.expected()[:5]


def test_existence_follows_slice_and_cap(library, plan):
    assert search(max_hits=5)[100:110].exists()
    assert not search(max_hits=5)[ROWS : ROWS + 10].exists()
    assert not search(max_hits=5).order_by("views")[5:10].exists()
    assert search().filter(search_distance__lt=5).exists()
    assert not search().filter(search_distance__lt=-1).exists()


def test_filters_choose_the_hits_and_do_not_thin_them_out(library, plan):
    chosen = Article.objects.filter(category__name="c2")

    assert keys(search(max_hits=6).filter(category__name="c2")) == library.expected(chosen)[:6]


def test_equal_distances_are_in_the_order_of_keys_across_pages(library, plan):
    store(library.index, new_space(library.index), {a: [QUERY] for a in library.articles})

    pages = [keys(search()[start : start + 7]) for start in range(0, ROWS, 7)]

    assert functools.reduce(operator.iadd, pages, []) == keys(library.articles)
    assert keys(search(max_hits=5)) == keys(library.articles[:5])


def test_hits_carry_distance_score_and_the_nearest_passage(library, plan):
    hit = search()[0]
    chunks = {chunk.text: chunk.vector for chunk in hit.embeddings.all()}
    distances = {text: 1 - float(vector @ QUERY) for text, vector in chunks.items()}

    assert hit.search_passage == min(distances, key=distances.get)
    # PostgreSQL keeps and compares 11 bits of each number.
    tolerance = {"sqlite": 1e-5, "postgresql": 1e-3}[connection.vendor]
    assert hit.search_distance == pytest.approx(min(distances.values()), abs=tolerance)
    assert hit.search_score == pytest.approx(1 - hit.search_distance)


def test_a_row_that_left_the_condition_is_no_hit(library, plan):
    first = library.expected()[0]
    connection.cursor().execute(
        "UPDATE testapp_article SET published = %s WHERE id = %s", [False, first]
    )

    assert first not in keys(search())


def test_only_the_active_space_answers(library, plan):
    empty = new_space(library.index)
    store(library.index, empty, {library.articles[3]: [QUERY]})

    assert keys(search()) == [library.articles[3].pk]


# Filters on distance, score and passage


@pytest.mark.parametrize("limit", [0.4, 0.55, 5.0])
def test_filters_on_distance_and_score_cut_the_order(library, plan, limit):
    everything = list(search())
    near = [hit.pk for hit in everything if hit.search_distance < limit]

    assert keys(search().filter(search_distance__lt=limit)) == near
    assert keys(search().filter(search_score__gt=1 - limit)) == near
    assert search().filter(search_distance__lt=limit, category__name="c1").count() == len(
        set(near) & set(keys(Article.objects.filter(category__name="c1")))
    )


@pytest.mark.parametrize(
    "condition",
    [
        Q(search_distance__gt=0.5),
        ~Q(search_distance__lt=0.5),
        Q(search_distance__gt=0.55) | Q(category__name="c1"),
        Q(search_passage__contains="passage 1"),
        Q(search_score__lt=F("views") / 50.0),
    ],
    ids=str,
)
def test_other_conditions_on_the_hit_choose_among_the_nearest_chunks(library, plan, condition):
    everything = list(search())
    kept = set(keys(search(max_hits=ROWS).filter(condition).order_by("pk")))
    expected = [hit.pk for hit in everything if hit.pk in kept]

    assert 0 < len(kept) < ROWS
    assert keys(search(max_hits=9).filter(condition)) == expected[:9]
    assert keys(search().filter(condition)[2:30]) == expected[2:30]


def test_passage_filters_look_at_the_nearest_chunk_only(library, plan):
    hits = search().filter(search_passage__contains="passage 1")

    assert all(hit.search_passage.endswith("passage 1") for hit in hits)
    assert sorted(keys(hits)) == sorted(
        hit.pk for hit in search() if hit.search_passage.endswith("passage 1")
    )


# Everything that a queryset can do


def test_search_reads_nothing_before_evaluation(library, plan, django_assert_num_queries):
    with django_assert_num_queries(0):
        search().filter(category__name="c1").order_by("views").values("title")[:5]


def test_order_by_and_reverse_arrange_the_same_hits(library, plan):
    hits = library.expected()[:15]

    assert keys(search(max_hits=15).reverse()) == hits[::-1]
    assert search(max_hits=15).last().pk == hits[-1]
    assert search(max_hits=15).first().pk == hits[0]
    assert set(keys(search(max_hits=15).order_by("-views")[:4])) <= set(hits)
    assert search(max_hits=15).latest("views").views == max(
        Article.objects.filter(pk__in=hits).values_list("views", flat=True)
    )


def test_a_tie_break_of_the_callers_keeps_slices_exact(library, plan):
    store(library.index, new_space(library.index), {a: [QUERY] for a in library.articles})

    hits = search().order_by("search_distance", "-pk")[:5]

    assert keys(hits) == keys(library.articles[::-1])[:5]


def test_descending_score_is_the_order_of_distance(library, plan):
    assert keys(search(max_hits=3).order_by("-search_score", "pk")[:9]) == library.expected()[:9]
    assert (
        keys(search(max_hits=3).order_by(F("search_score").desc(), "pk")[:9])
        == library.expected()[:9]
    )


def test_values_only_and_defer(library, plan):
    first = library.expected()[0]

    assert search().values_list("pk", flat=True)[0] == first
    assert set(search().values("title", "search_score")[0]) == {"title", "search_score"}
    assert search().values("search_chunk__number")[0]["search_chunk__number"] in range(CHUNKS)
    assert search().only("title")[0].pk == first
    assert search().defer("body")[0].search_passage


def test_annotate_alias_and_group(library, plan):
    hits = search(max_hits=40)
    expected = Article.objects.filter(pk__in=library.expected()[:40])

    tagged = hits.annotate(n=Count("tags"))
    assert {hit.pk: hit.n for hit in tagged} == dict(
        expected.annotate(n=Count("tags")).values_list("pk", "n")
    )
    assert keys(tagged) == library.expected()[:40]
    groups = hits.order_by().values("category__name").annotate(n=Count("pk")).order_by("n", "pk")
    assert sum(group["n"] for group in groups) == 40
    assert (
        keys(hits.alias(double=F("search_distance") * 2).order_by("-double"))
        == (library.expected()[:40][::-1])
    )


def test_a_condition_on_an_aggregate_chooses_the_hits(library, plan):
    tagged = Article.objects.annotate(n=Count("tags")).filter(n=3)

    hits = search(max_hits=10).annotate(n=Count("tags")).filter(n=3)

    assert keys(hits) == library.expected(tagged)[:10]
    assert hits.count() == 10


def test_a_condition_on_groups_looks_at_the_hits(library, plan):
    groups = search(max_hits=10).order_by().values("category").annotate(n=Count("pk"))

    every = {group["category"]: group["n"] for group in groups}

    assert sum(every.values()) == 10
    assert {g["category"] for g in groups.filter(n__gt=2)} == {c for c, n in every.items() if n > 2}


def test_a_window_looks_at_the_hits(library, plan):
    rank = Window(RowNumber(), partition_by="category", order_by="search_distance")

    best = search(max_hits=30).annotate(rank=rank).filter(rank=1)

    hits = Article.objects.in_bulk(library.expected()[:30])
    firsts = {hits[pk].category_id: pk for pk in reversed(library.expected()[:30])}
    assert set(keys(best)) == set(firsts.values())


def test_distinct_related_and_prefetched(library, plan, django_assert_num_queries):
    expected = library.expected()[:5]

    assert keys(search().distinct()[:5]) == expected
    assert set(search(max_hits=50).order_by().values_list("category__name").distinct()) == {
        (f"c{n}",) for n in range(4)
    }
    hits = list(search().select_related("category").prefetch_related("tags", "embeddings")[:5])
    with django_assert_num_queries(0):
        assert [len(hit.embeddings.all()) for hit in hits] == [CHUNKS] * 5
        assert all(hit.category.name for hit in hits)


def test_slices_of_distinct_values_are_not_cut_short(library, plan):
    store(library.index, new_space(library.index), {a: [QUERY] for a in library.articles})

    names = search().values_list("category__name", flat=True).distinct()[:4]

    assert set(names) == {"c0", "c1", "c2", "c3"}


def test_as_a_subquery(library, plan):
    first = library.expected()[:3]

    assert set(keys(Article.objects.filter(pk__in=search()[:3]))) == set(first)
    assert set(keys(Article.objects.filter(pk__in=search(max_hits=3)))) == set(first)
    assert set(keys(Article.objects.exclude(pk__in=search(max_hits=3)))) == set(
        library.expected()[3:]
    )
    assert Category.objects.filter(article__in=search(max_hits=3)).distinct().count() == len(
        set(Article.objects.filter(pk__in=first).values_list("category"))
    )


def test_as_a_subquery_that_looks_outside(library, plan):
    inside = search().filter(category=OuterRef("pk"))

    found = Category.objects.annotate(
        best=Subquery(inside.values("pk")[:1]),
        distance=Subquery(inside.values("search_distance")[:1]),
    )

    for category in found:
        chosen = library.expected(Article.objects.filter(category=category))
        assert category.best == chosen[0]
        assert category.distance == search().get(pk=category.best).search_distance
    assert Category.objects.filter(Exists(inside)).count() == 4
    assert not Category.objects.filter(Exists(inside.filter(views=-1))).exists()


def test_a_subquery_may_look_out_to_the_search(library, plan):
    closer = Article.objects.filter(pk=OuterRef("pk"), views__gt=OuterRef("search_distance") * 40)

    hits = search().filter(Exists(closer))

    assert keys(hits) == [hit.pk for hit in search() if hit.views > hit.search_distance * 40]


@pytest.mark.parametrize("operator", ["union", "intersection", "difference"])
def test_compound_statements(library, plan, operator):
    left, right = set(library.expected()[:10]), set(library.expected()[:10][5:])
    nearest = search(max_hits=10).values("pk")
    some = Article.objects.filter(pk__in=right).order_by().values("pk")
    combined = getattr(nearest, operator)(some)

    assert {row["pk"] for row in combined} == getattr(left, operator)(right)
    assert combined.count() == len(getattr(left, operator)(right))


def test_union_of_searches_is_ordered_afterwards(library, plan):
    first = search(max_hits=3).filter(category__name="c1")
    second = search()[:4]

    both = first.union(second).order_by("search_distance")

    chosen = library.expected(Article.objects.filter(category__name="c1"))[:3]
    wanted = {*chosen, *library.expected()[:4]}
    assert keys(both) == [pk for pk in library.expected() if pk in wanted]


def test_union_takes_a_search_after_a_plain_queryset(library, plan):
    plain = Article.objects.filter(pk=library.expected()[50]).values("pk").order_by()

    both = plain.union(search(max_hits=2).values("pk"))

    assert {row["pk"] for row in both} == {library.expected()[50], *library.expected()[:2]}


def test_and_keeps_the_hits_that_meet_both(library, plan):
    some = Article.objects.filter(category__name="c1")

    assert keys(search() & some) == keys(some & search()) == library.expected(some)
    assert keys(search() & search().filter(views__lt=9)) == library.expected(
        Article.objects.filter(views__lt=9)
    )
    assert not (search() & Article.objects.none()).exists()


@pytest.mark.parametrize("swap", [False, True])
def test_or_is_refused_with_the_way_out(library, swap):
    left, right = (search(), Article.objects.all())[:: -1 if swap else 1]

    with pytest.raises(InvalidInput, match=r"union\(\)"):
        left | right
    with pytest.raises(InvalidInput, match=r"union\(\)"):
        left ^ right


def test_delete_takes_the_hits_and_nothing_else(library, plan):
    gone = library.expected()[:4]

    count, counts = search(max_hits=4).delete()

    assert counts["testapp.Article"] == 4
    assert not Article.objects.filter(pk__in=gone).exists()
    assert Article.objects.count() == ROWS - 4
    assert count == sum(counts.values())


def test_delete_of_rows_without_relations_takes_the_hits_only(plan):
    products = [Product.objects.create(description=str(n), sku=str(n)) for n in range(6)]
    index = Product.embeddings.index
    store(
        index,
        new_space(index),
        {p: [v] for p, v in zip(products, random_vectors(6, seed=4), strict=True)},
    )

    Product.embeddings.nearest(QUERY, max_hits=2).delete()

    assert Product.objects.count() == 4


def test_update_takes_the_hits_and_nothing_else(library, plan):
    assert search(max_hits=4).filter(category__name="c1").update(title="new") == 4

    chosen = library.expected(Article.objects.filter(category__name="c1"))[:4]
    assert set(keys(Article.objects.filter(title="new"))) == set(chosen)


@pytest.mark.parametrize("verb", ["delete", "update"])
def test_hits_of_a_slice_cannot_be_written(library, verb):
    with pytest.raises(TypeError, match="max_hits"):
        getattr(search()[:3], verb)(**({"title": "x"} if verb == "update" else {}))


def test_contains_and_in_bulk_and_get(library, plan):
    hits = search(max_hits=3)
    inside, outside = library.expected()[0], library.expected()[-1]

    assert hits.contains(Article.objects.get(pk=inside))
    assert not search(max_hits=3).contains(Article.objects.get(pk=outside))
    assert set(search().in_bulk([inside, outside])) == {inside, outside}
    assert search().get(pk=outside).search_distance
    with pytest.raises(Article.DoesNotExist):
        search().get(pk=-1)


def test_iterator(library, plan):
    assert keys(search()[:5].iterator(chunk_size=2)) == library.expected()[:5]


@pytest.mark.django_db(transaction=True)
def test_async_iteration():
    expected = Library().expected()[:5]

    async def collect() -> tuple[list[Any], int]:
        return [hit.pk async for hit in search()[:5]], await search(max_hits=7).acount()

    # In this thread, whose connection it is.
    assert async_to_sync(collect)() == (expected, 7)


def test_pickled_results_and_queries(library, plan):
    hits = search(max_hits=5)

    restored = pickle.loads(pickle.dumps(hits))
    query = pickle.loads(pickle.dumps(search(max_hits=5).query))
    again = Article.objects.all()
    again.query = query

    assert keys(restored) == keys(hits)
    assert keys(restored.filter(category__name="c1")) == keys(hits.filter(category__name="c1"))
    assert keys(again) == keys(hits)


def test_explain_and_sql(library, plan):
    assert search()[:3].explain()
    assert "search_chunk" in str(search()[:3].query)


def test_none_asks_nothing(library, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert list(search().none()) == []
        assert not Article.objects.none().search("anything").exists()
        assert list(search()[:0]) == []


def test_paginator(library, plan):
    pages = Paginator(search(max_hits=25), 10)

    assert pages.count == 25
    assert [len(page.object_list) for page in pages] == [10, 10, 5]
    assert keys(pages.page(3)) == library.expected()[20:25]


def test_admin_changelist(library, plan):
    class Admin(ModelAdmin):
        search_fields = ("title",)

        def get_search_results(self, request, queryset, search_term):
            return queryset.nearest(QUERY, max_hits=30), False

    request = RequestFactory().get("/", {"q": "term"})
    request.user = User(is_superuser=True, is_staff=True, is_active=True)
    changelist = Admin(Article, site).get_changelist_instance(request)

    assert changelist.result_count == 30
    assert keys(changelist.result_list) == library.expected()[:30]


def test_related_managers_search_their_own_rows(library, plan):
    category = library.categories[2]

    assert keys(category.article_set.nearest(QUERY)) == library.expected(category.article_set.all())


def test_prefetch_of_a_search(library, plan):
    found = Category.objects.prefetch_related(Prefetch("article_set", search(), to_attr="near"))

    for category in found:
        assert keys(category.near) == library.expected(category.article_set.all())


def test_the_models_own_queryset_class_stays(library, plan):
    assert keys(search().published()[:3]) == library.expected()[:3]
    note = Note.objects.create(subject="x")
    index = Note.embeddings.index
    store(index, new_space(index), {note: [QUERY]})

    hits = Note.embeddings.nearest(QUERY)

    assert isinstance(hits, SearchQuerySet)
    assert isinstance(hits, type(Note.objects.all()))
    assert keys(pickle.loads(pickle.dumps(hits))) == [note.pk]


# Keys and inheritance


@pytest.mark.parametrize(
    ("make", "accessor"),
    [
        (lambda n: Note.objects.create(subject=str(n)), lambda: Note.embeddings),
        (
            lambda n: Page.objects.create(slug=f"päge'{n}", heading="h", content="c"),
            lambda: Page.contents,
        ),
        (lambda n: Restaurant.objects.create(name=str(n), menu="m"), lambda: Restaurant.embeddings),
        (
            lambda n: Service.objects.create(description=str(n), price=1),
            lambda: Service.embeddings,
        ),
    ],
    ids=["uuid", "text", "inherited table", "abstract base"],
)
def test_keys_of_every_kind(plan, make, accessor):
    rows = [make(n) for n in range(20)]
    index, vectors = accessor().index, random_vectors(20, seed=3)
    store(
        index, new_space(index), {row: [vector] for row, vector in zip(rows, vectors, strict=True)}
    )
    expected = keys(sorted(rows, key=lambda row: -float(vectors[rows.index(row)] @ QUERY)))

    assert keys(accessor().nearest(QUERY)[:7]) == expected[:7]
    assert keys(accessor().nearest(QUERY).exclude(pk=expected[0])[:3]) == expected[1:4]
    assert keys(accessor().similar_to(rows[0]).filter(pk__in=expected[:5])) != []


def test_a_child_table_is_searched_through_the_parents_index(library, plan):
    posts = [
        BlogPost.objects.create(title=f"p{n}", slug=f"p{n}", category=library.categories[0])
        for n in range(5)
    ]
    vectors = random_vectors(5, seed=8)
    store(library.index, library.space, {post: [v] for post, v in zip(posts, vectors, strict=True)})
    expected = keys(sorted(posts, key=lambda post: -float(vectors[posts.index(post)] @ QUERY)))

    hits = BlogPost.embeddings.nearest(QUERY)

    assert keys(hits) == expected
    assert all(type(hit) is BlogPost for hit in hits)
    assert keys(hits.filter(slug="p3")) == [posts[3].pk]
    assert keys(hits[:2]) == expected[:2]


def test_a_child_table_alone_is_a_filter(library, plan, monkeypatch):
    monkeypatch.setattr(library.index, "condition", None)
    post = BlogPost.objects.create(title="p", slug="p")
    store(library.index, library.space, {post: [-QUERY]})

    assert keys(BlogPost.embeddings.nearest(QUERY, max_hits=1)) == [post.pk]
    assert keys(BlogPost.embeddings.nearest(QUERY)[:5]) == [post.pk]


def test_a_proxy_shares_the_index(library, plan):
    hits = FeaturedArticle.embeddings.nearest(QUERY)[:5]

    assert keys(hits) == library.expected()[:5]
    assert type(hits[0]) is FeaturedArticle


# similar_to, text, chunks of a row


def test_similar_to_takes_the_mean_direction_and_leaves_the_row_out(library, plan):
    article = library.articles[7]
    mean = np.mean([chunk.vector for chunk in article.embeddings.all()], axis=0)
    expected = brute_force(library.index, library.space, mean, set(keys(library.articles)))

    assert (
        keys(Article.embeddings.similar_to(article)[:9])
        == [pk for pk in expected if pk != article.pk][:9]
    )


def test_a_text_is_embedded_by_the_model_of_the_active_space(library, plan):
    vector = openai_service.embed(["a text"], model=embedded.MODEL, dimensions=16)[0]

    by_text = Article.objects.search("a text")[:10]

    assert keys(by_text) == keys(Article.embeddings.nearest(vector)[:10])


def test_chunks_of_a_row_are_those_of_the_active_space_in_order(library):
    article = library.articles[0]
    retired = library.space
    store(library.index, new_space(library.index), {article: [QUERY, -QUERY]})

    assert [chunk.number for chunk in article.embeddings.all()] == [0, 1]
    assert article.embeddings.count() == 2
    assert article.embeddings.filter(number=1).get().text == f"{article.pk} passage 1"
    assert not article.embeddings.filter(space=retired).exists()


# Bad input


@pytest.mark.parametrize("max_hits", [0, -1, True, "5", 2.0, 10**9])
def test_max_hits_must_be_a_number_of_hits(max_hits):
    with pytest.raises(InvalidInput, match="max_hits is a number from 1 to 1,000,000"):
        search(max_hits=max_hits)


@pytest.mark.parametrize("text", ["", "  \n", None, b"text", 5, ["text"], "a\ud800"])
def test_a_query_must_be_a_text(text):
    with pytest.raises(InvalidInput, match=r"search\(\) takes a text"):
        Article.objects.search(text)


@pytest.mark.parametrize(
    "vector",
    [[0.0] * 16, [float("nan")] * 16, [float("inf")] * 16, [], [[1.0]], "1,2", None, ["x"]],
)
def test_a_vector_must_have_a_direction(vector):
    with pytest.raises(InvalidInput, match="vector"):
        Article.embeddings.nearest(vector)


def test_a_vector_of_another_length_names_both(library):
    with pytest.raises(DimensionMismatch, match=r"16 dimensions .* one of 3"):
        list(Article.embeddings.nearest([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: Article.objects.all()[:5], "search first, then slice"),
        (lambda: Article.objects.values("title"), r"take values\(\)"),
        (lambda: Article.objects.values_list("title"), r"take values\(\)"),
        (lambda: Article.objects.all().union(Article.objects.all()), "search its parts"),
        (lambda: Article.objects.nearest([1.0]), "search already"),
        (lambda: Article.objects.annotate(search_score=F("views")), "rename it"),
    ],
    ids=["slice", "values", "values_list", "union", "search", "annotated"],
)
def test_querysets_that_cannot_be_searched_say_what_to_do(make, fix):
    with pytest.raises(InvalidInput, match=fix):
        make().search("text")


def test_an_unsaved_row_has_neither_neighbours_nor_chunks():
    with pytest.raises(InvalidInput, match="save it first"):
        Article.embeddings.similar_to(Article(title="new"))
    with pytest.raises(InvalidInput, match="save it first"):
        Note.embeddings.similar_to(Note(subject="has a key, and is not saved"))
    with pytest.raises(InvalidInput, match="save it first"):
        Article(title="new").embeddings.all()


def test_similar_to_takes_rows_of_its_model():
    with pytest.raises(InvalidInput, match=r"testapp\.Article, not of Note"):
        Article.embeddings.similar_to(Note(subject="x"))


def test_a_row_without_embeddings_names_the_command(library):
    article = Article.objects.create(title="new", published=False)

    with pytest.raises(InvalidInput, match=r"embeddings sync testapp\.Article\.embeddings"):
        list(Article.embeddings.similar_to(article))


def test_a_model_without_declaration_says_how_to_declare():
    with pytest.raises(InvalidInput, match=r"testapp\.Plain declares no embeddings"):
        SearchQuerySet(Plain).search("text")


def test_one_of_several_declarations_must_be_named():
    with pytest.raises(InvalidInput, match="contents, headings"):
        Page.objects.search("text")
    assert Page.objects.search("text", index="headings").query.search.index.name == "headings"


def test_without_a_space_nothing_is_found_and_the_log_says_why(caplog):
    hits = Book.embeddings.nearest(QUERY)

    assert list(hits) == []
    assert hits.count() == 0
    assert "manage.py embeddings sync testapp.Book.embeddings" in caplog.text
    assert len(caplog.records) == 1


def test_a_database_without_tables_says_where_to_search(library, monkeypatch):
    monkeypatch.setattr(Space._meta, "db_table", "missing")

    with pytest.raises(InvalidInput, match="migrate --database default"):
        list(search())


def test_accessors_show_what_they_are():
    assert repr(Article.embeddings) == "<embeddings embeddings of testapp.Article>"
    assert isinstance(Article.embeddings, ModelAccessor)
