"""Stored embeddings in a project's own tests, answered by the fake."""

from __future__ import annotations

import pytest

from django_services.exceptions import AuthenticationFailed
from django_services.testing import embed_pending, fake_openai
from tests.testapp.models import Article

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]


def titles(query):
    return [hit.title for hit in Article.embeddings.search(query)]


@pytest.fixture
def articles():
    Article.objects.create(title="Bread", body="Knead the dough and bake the loaf.")
    Article.objects.create(title="Engines", body="Change the oil of the car.")


def test_rows_are_embedded_and_found_by_meaning(fake, articles):
    embed_pending()

    assert titles("how to bake a loaf")[0] == "Bread"
    fake.assert_embedded(lambda text: "Knead the dough" in text, times=1)


def test_no_fake_finds_a_query_that_another_has_cached(articles):
    with fake_openai():
        embed_pending()
        titles("repair a motor")

    with fake_openai() as fake:
        titles("repair a motor")

    fake.assert_embedded("repair a motor")


def test_what_the_service_refuses_stays_pending(fake, articles):
    fake.fail(401, times=None)

    with pytest.raises(AuthenticationFailed):
        embed_pending()

    fake.assert_called(times=1)
