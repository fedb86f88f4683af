import pytest
from django.db import models
from django.db.models import Exists, Q
from django.test.utils import isolate_apps

from django_services.embeddings import checks, declaration
from django_services.embeddings.declaration import Embeddings, indexes
from tests.testapp.models import Article, Plain


def declared(embeddings, **meta):
    """Return the declaration of a model made for the test."""
    options = type("Meta", (), {"app_label": "testapp"} | meta)
    attributes = {
        "__module__": __name__,
        "Meta": options,
        "title": models.CharField(max_length=10),
        "embeddings": embeddings,
    }
    return type("Checked", (models.Model,), attributes)._meta.private_fields[0]


def messages_of(index):
    return [message for check in checks._CHECKS for message in check(index)]


def ids_of(index):
    return [message.id for message in messages_of(index)]


def test_the_projects_own_declarations_are_sound():
    assert checks.check_declarations() == []


def test_checks_do_no_io(django_assert_num_queries, db):
    with django_assert_num_queries(0):
        checks.check_declarations()


@isolate_apps("tests.testapp")
@pytest.mark.parametrize(
    ("embeddings", "wanted"),
    [
        (lambda: Embeddings("titel"), "django_services.E101"),
        (lambda: Embeddings("title__name"), "django_services.E101"),
        (lambda: Embeddings("title", condition=Q(publshed=True)), "django_services.E101"),
        (lambda: Embeddings("title", chunk_size=10), "django_services.E103"),
        (lambda: Embeddings("title", chunk_size=9_000), "django_services.E103"),
        (lambda: Embeddings("title", chunk_size=100, chunk_overlap=60), "django_services.E103"),
        (lambda: Embeddings("title", chunk_size=100, chunk_overlap=-1), "django_services.E103"),
        (lambda: Embeddings("title", dimensions=4_001), "django_services.E104"),
        (lambda: Embeddings("title", dimensions=0), "django_services.E104"),
        (
            lambda: Embeddings("title", condition=Q(Exists(Plain.objects.all()))),
            "django_services.W101",
        ),
    ],
)
def test_a_wrong_declaration_is_named_by_a_stable_id(embeddings, wanted):
    index = declared(embeddings())

    assert ids_of(index) == [wanted]
    assert all(message.hint for message in messages_of(index))


@isolate_apps("tests.testapp")
@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({"managed": False}, ["django_services.E102"]),
        ({"db_table": 'odd"name'}, ["django_services.E107"]),
        ({"db_table": "100%"}, ["django_services.E107"]),
        ({"db_table": "odd name"}, []),
    ],
)
def test_a_table_that_cannot_be_captured_is_named(meta, wanted):
    assert ids_of(declared(Embeddings("title"), **meta)) == wanted


@isolate_apps("tests.testapp")
def test_a_lookup_that_is_nearly_right_names_the_right_one():
    (message,) = messages_of(declared(Embeddings("titel")))

    assert "did you mean 'title'?" in message.msg


@isolate_apps("tests.testapp")
def test_a_model_of_unknown_dimensions_says_what_to_set(settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-test"}}}

    (message,) = messages_of(declared(Embeddings("title", model="a-model-of-tomorrow")))

    assert message.id == "django_services.E104"
    assert "DIMENSIONS" in message.msg


def test_a_router_that_parts_a_model_from_its_embeddings_is_an_error(settings):
    settings.DATABASE_ROUTERS = [PartingRouter()]
    index = next(index for index in indexes() if index.model is Article)

    assert set(ids_of(index)) == {"django_services.E105"}


class PartingRouter:
    def allow_migrate(self, db, app_label, **hints):
        return app_label != "django_services"


def test_a_composite_key_is_refused_once_and_breaks_nothing(monkeypatch):
    with isolate_apps("tests.testapp") as registry:
        monkeypatch.setattr(declaration, "apps", registry)

        class Line(models.Model):
            pk = models.CompositePrimaryKey("order", "number")
            order = models.IntegerField()
            number = models.IntegerField()
            text = models.TextField()

            embeddings = Embeddings("text")

            class Meta:
                app_label = "testapp"

        messages = checks.check_declarations()

    assert [message.id for message in messages] == ["django_services.E106"]
    assert "testapp.Line.embeddings: a primary key of several columns" in messages[0].msg
    assert declaration.indexes() == []
    assert [model.__name__ for model in registry.get_models()] == ["Line"]
