"""The admin: documents by meaning, what failed, and the spaces."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client

from django_services.admin import SearchAdmin
from django_services.embeddings.documents import Document
from django_services.embeddings.models import Change, Failure, Space
from django_services.exceptions import QuotaExhausted
from django_services.models import Usage
from django_services.testing import embed_pending
from tests.ledger.calls import end_call
from tests.testapp.models import Page

pytestmark = pytest.mark.django_db

DOCUMENTS = "/admin/django_services/document/"
FAILURES = "/admin/django_services/failure/"
SPACES = "/admin/django_services/space/"
USAGE = "/admin/django_services/usage/"


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


@pytest.fixture
def calls() -> None:
    end_call(tenant="acme", cost=Decimal("0.5"))
    end_call(tenant="acme", cost=None)
    end_call(tenant="other", request_id="req_2", cost=Decimal("0.0000001"))


def test_usage_can_be_seen_and_not_changed(admin_client, calls):
    pk = Usage.objects.first().pk

    assert admin_client.get(USAGE).status_code == 200
    assert admin_client.get(f"{USAGE}{pk}/change/").status_code == 200
    assert admin_client.get(f"{USAGE}add/").status_code == 403
    assert admin_client.post(f"{USAGE}{pk}/change/", {}).status_code == 403
    assert admin_client.post(f"{USAGE}{pk}/delete/", {"post": "yes"}).status_code == 403


def test_usage_is_added_up_under_its_filters(admin_client, calls):
    everything = admin_client.get(USAGE)
    of_acme = admin_client.get(USAGE, {"q": "acme"})

    assert "3 operations, 3000 tokens in, 150 out, $0.5000, 1 of unknown cost" in page(everything)
    assert "2 operations" in page(of_acme)


def test_small_and_unknown_costs_of_usage_are_shown_as_they_are(admin_client, calls):
    shown = page(admin_client.get(USAGE))

    assert "$0.0000001" in shown
    assert ">?<" in shown


def test_a_filter_of_usage_that_is_none_is_no_error_page(admin_client, calls):
    assert admin_client.get(USAGE, {"colour": "red"}).status_code == 302


def page(response) -> str:
    return response.content.decode()
