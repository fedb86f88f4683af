"""The admin: documents by meaning, what failed, and the spaces."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client

from django_services.admin import SearchAdmin
from django_services.embeddings.documents import Document
from django_services.embeddings.models import Change, Failure, Space
from django_services.exceptions import QuotaExhausted
from django_services.testing import embed_pending
from tests.testapp.models import Page

pytestmark = pytest.mark.django_db

DOCUMENTS = "/admin/django_services/document/"
FAILURES = "/admin/django_services/failure/"
SPACES = "/admin/django_services/space/"


@pytest.fixture
def documents() -> list[Document]:
    texts = {
        "bread": "Knead the dough, then bake it in the oven.",
        "engine": "A piston turns fuel into motion.",
        "orchestra": "Violins and trumpets play a symphony.",
    }
    found = [Document.objects.create(name=name, text=text) for name, text in texts.items()]
    embed_pending()
    return found


@pytest.fixture
def failure(documents) -> Failure:
    Failure.objects.create(
        index="django_services.Document.embeddings",
        source=str(documents[0].pk),
        attempts=5,
        retry_at=0,
        set_aside=True,
        error="QuotaExhausted",
        message="No credit.",
    )
    return Failure.objects.get()


@pytest.fixture
def staff() -> Client:
    """A client whose user may look, and no more."""
    user = User.objects.create(username="ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client = Client()
    client.force_login(user)
    return client


def test_documents_are_searched_by_meaning_the_nearest_first(admin_client, documents):
    response = admin_client.get(DOCUMENTS, {"q": "classical music"})

    names = [document.name for document in response.context["cl"].result_list]
    assert names[0] == "orchestra"
    assert "Violins and trumpets play" in response.content.decode()


def test_search_for_blanks_shows_all(admin_client, documents):
    response = admin_client.get(DOCUMENTS, {"q": "  "})

    assert response.context["cl"].result_count == 3


def test_service_that_refuses_is_a_message_and_no_error_page(admin_client, documents, monkeypatch):
    def refuse(*_args: object, **_options: object) -> None:
        raise QuotaExhausted("The account has no credit left.")

    monkeypatch.setattr("django_services.openai_service.embed", refuse)

    response = admin_client.get(DOCUMENTS, {"q": "a query that is in no cache"})

    assert response.status_code == 200
    assert "The account has no credit left." in response.content.decode()
    assert response.context["cl"].result_count == 0


def test_document_is_added_and_changed(admin_client):
    form = {"name": "soup", "title": "", "text": "Stir it.", "metadata": "{}"}

    response = admin_client.post(f"{DOCUMENTS}add/", form)

    assert response.status_code == 302
    assert Document.objects.get().text == "Stir it."


def test_search_admin_takes_any_manager_and_a_named_declaration(rf, documents):
    Page.objects.create(slug="a", heading="Bread", content="Engines")
    Page.objects.create(slug="b", heading="Engines", content="Bread")
    embed_pending()
    model_admin = SearchAdmin(Page, admin.site)
    model_admin.search_index = "contents"

    found, may_repeat = model_admin.get_search_results(
        rf.get("/"), Page._base_manager.all(), "baking bread"
    )

    assert found.first().slug == "b"
    assert not may_repeat


def test_failed_rows_are_tried_again(admin_client, failure):
    admin_client.post(FAILURES, {"action": "retry", "_selected_action": [failure.pk]})

    assert not Failure.objects.exists()
    assert list(Change.objects.values_list("index", "source")) == [(failure.index, failure.source)]


def test_failure_of_a_declaration_that_is_gone_is_only_removed(admin_client, failure):
    Failure.objects.update(index="gone.Model.embeddings")

    admin_client.post(FAILURES, {"action": "retry", "_selected_action": [failure.pk]})

    assert not Failure.objects.exists()
    assert not Change.objects.exists()


def test_who_may_only_look_cannot_try_again(staff, failure):
    staff.post(FAILURES, {"action": "retry", "_selected_action": [failure.pk]})

    assert Failure.objects.exists()


@pytest.mark.parametrize("page", [FAILURES, SPACES])
def test_what_the_package_keeps_can_be_seen_and_not_changed(admin_client, failure, page):
    pk = (Failure if page is FAILURES else Space).objects.first().pk

    assert admin_client.get(page).status_code == 200
    assert admin_client.get(f"{page}{pk}/change/").status_code == 200
    assert admin_client.get(f"{page}add/").status_code == 403
    assert admin_client.post(f"{page}{pk}/change/", {}).status_code == 403


def test_spaces_cannot_be_deleted(admin_client, documents):
    pk = Space.objects.first().pk

    assert admin_client.post(f"{SPACES}{pk}/delete/", {"post": "yes"}).status_code == 403
