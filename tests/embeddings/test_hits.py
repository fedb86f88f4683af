"""One search over several declarations."""

from __future__ import annotations

import pytest

from django_services.embeddings.declaration import get_index
from django_services.embeddings.hits import search
from django_services.embeddings.models import Space
from django_services.exceptions import InvalidInput
from django_services.testing import embed_pending
from tests.testapp.models import Article, Note

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


@pytest.fixture
def rows() -> None:
    Article.objects.create(title="Bread", body="Knead the dough.")
    Article.objects.create(title="Engine", body="A piston turns fuel into motion.")
    Note.objects.create(subject="Bake bread")
    embed_pending()


def test_hits_of_all_declarations_stand_in_the_order_of_their_score(rows):
    hits = search("bread", alias="default")

    scores = [hit.score for hit in hits]
    assert {hit.label.split(".")[1] for hit in hits[:2]} == {"Article", "Note"}
    assert scores == sorted(scores, reverse=True)


def test_limit_is_that_of_all_together(rows):
    assert len(search("bread", alias="default", limit=2)) == 2


def test_declarations_that_were_never_embedded_are_left_out(rows):
    Space.objects.filter(index="testapp.Note.embeddings").delete()

    hits = search("bread", alias="default")

    assert {hit.label for hit in hits} == {"testapp.Article.embeddings"}


def test_nothing_embedded_names_the_command():
    with pytest.raises(InvalidInput, match=r"run manage\.py embeddings sync"):
        search("bread", alias="default")


def test_scores_of_different_models_are_not_compared(rows):
    Space.objects.filter(index="testapp.Note.embeddings").update(model="another")

    with pytest.raises(InvalidInput, match=r"--index LABEL.*testapp\.Note\.embeddings \(another\)"):
        search("bread", alias="default")


def test_one_declaration_is_searched_whatever_the_others_are(rows):
    Space.objects.filter(index="testapp.Note.embeddings").update(model="another")
    index = get_index("testapp.Article")

    hits = search("bread", alias="default", indexes=[index], limit=1)

    assert [str(hit.source) for hit in hits] == ["Bread"]


def test_a_hit_does_not_show_its_passage(rows):
    (hit, *_) = search("bread", alias="default")

    assert hit.passage not in repr(hit)
