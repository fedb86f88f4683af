import pickle

import pytest
from django.apps import apps
from django.core import serializers
from django.core.exceptions import FieldError
from django.db import models
from django.db.migrations.state import ModelState
from django.db.models import Exists, F, OuterRef, Q
from django.forms import modelform_factory
from django.test.utils import isolate_apps

from django_services.embeddings import declaration
from django_services.embeddings.declaration import Embeddings, get_index, indexes, register
from django_services.exceptions import ConfigurationError, InvalidInput
from tests.testapp import models as models_of_app
from tests.testapp.models import (
    Article,
    BlogPost,
    Described,
    FeaturedArticle,
    Note,
    Page,
    Plain,
    Product,
    Service,
)


def index_of(model, name="embeddings"):
    return next(field for field in model._meta.private_fields if field.name == name)


def test_a_declaration_adds_a_chunk_model_to_its_app():
    chunk_model = apps.get_model("testapp", "ArticleEmbeddingsChunk")

    assert chunk_model is index_of(Article).chunk_model
    assert chunk_model._meta.get_field("source").related_model is Article


def test_a_chunk_model_is_imported_from_its_models_module():
    assert models_of_app.ArticleEmbeddingsChunk is index_of(Article).chunk_model


def test_every_declaration_of_a_model_has_its_own_chunks():
    headings, contents = index_of(Page, "headings"), index_of(Page, "contents")

    assert headings.chunk_model.__name__ == "PageHeadingsChunk"
    assert contents.chunk_model.__name__ == "PageContentsChunk"


# These columns stand in users' migrations.
def test_the_columns_of_a_chunk_are_frozen():
    state = ModelState.from_model(index_of(Article).chunk_model)

    columns = {name: type(field).__name__ for name, field in state.fields.items()}

    assert columns == {
        "id": "BigAutoField",
        "source": "ForeignKey",
        "space": "ForeignKey",
        "number": "PositiveIntegerField",
        "start": "PositiveIntegerField",
        "end": "PositiveIntegerField",
        "text": "TextField",
        "context": "TextField",
        "content_hash": "BinaryField",
        "vector": "VectorField",
    }
    (unique,) = state.options["constraints"]
    assert unique.fields == ("source", "space", "number")
    assert unique.name == "testapp_articleembeddingschunk_" + unique.name[-13:]
    assert [index.fields for index in state.options["indexes"]] == [["space", "content_hash"]]


def test_the_declaration_itself_stands_in_no_migration():
    assert "embeddings" not in ModelState.from_model(Article).fields


def test_a_declaration_has_no_column_and_no_form_field():
    assert "embeddings" not in {field.name for field in Article._meta.concrete_fields}
    assert "embeddings" not in modelform_factory(Article, fields="__all__").base_fields


@pytest.mark.django_db
def test_a_row_is_made_serialised_and_pickled_as_without_a_declaration():
    article = Article.objects.create(title="Gzip", body="Compresses.")

    (copy,) = serializers.deserialize("json", serializers.serialize("json", [article]))

    assert copy.object.title == "Gzip"
    assert pickle.loads(pickle.dumps(article)).body == "Compresses."


def test_a_row_takes_no_embeddings():
    with pytest.raises(AttributeError, match="kept in step"):
        Article().embeddings = []


def test_a_lookup_to_the_declaration_is_a_clear_error():
    with pytest.raises(FieldError, match="embeddings"):
        str(Article.objects.filter(embeddings=1).query)


@pytest.mark.parametrize("child", [BlogPost, FeaturedArticle])
def test_children_and_proxies_share_the_parents_declaration(child):
    assert index_of(child).origin is index_of(Article)
    assert index_of(child).label == "testapp.Article.embeddings"


@pytest.mark.parametrize("model", [Product, Service])
def test_an_abstract_base_hands_its_declaration_on(model):
    index = index_of(model)

    assert index.origin is index
    assert index.label == f"testapp.{model.__name__}.embeddings"
    assert index.chunk_model.__name__ == f"{model.__name__}EmbeddingsChunk"
    assert not hasattr(index_of(Described), "chunk_model")


def test_indexes_are_every_declaration_once():
    labels = [index.label for index in indexes()]

    assert len(labels) == len(set(labels))
    assert {"testapp.Page.headings", "testapp.Product.embeddings"} <= set(labels)
    assert "testapp.BlogPost.embeddings" not in labels


@pytest.mark.parametrize(
    "label", ["testapp.Article.embeddings", "TESTAPP.ARTICLE.EMBEDDINGS", "testapp.article"]
)
def test_a_label_finds_its_declaration(label):
    assert get_index(label) is index_of(Article)


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("testapp.Artcle.embeddings", "did you mean testapp.Article.embeddings?"),
        ("testapp.Page", "several embeddings: say which, testapp.Page.headings"),
        ("xyz", "known: "),
        ("", "known: "),
    ],
)
def test_an_unknown_label_names_what_is_near(label, hint):
    with pytest.raises(InvalidInput, match=hint.replace("?", r"\?")):
        get_index(label)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "what to embed"),
        (("title",), {"text": str, "watch": ("title",)}, "not both"),
        ((), {"text": str}, "watch="),
        ((), {"text": "title", "watch": ("title",)}, "callable"),
        (("title",), {"condition": {"published": True}}, "Q object"),
        ((None,), {}, "names of fields"),
        (("",), {}, "names of fields"),
    ],
)
def test_a_wrong_declaration_says_what_to_write(arguments, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Embeddings(*arguments, **options)


def test_paths_are_all_that_the_text_and_the_condition_read():
    index = Embeddings(
        text=Note.as_text,
        watch=("subject",),
        condition=Q(a=1) & (Q(b__gt=F("c")) | ~Q(d__in=[1])) & Q(Exists(Plain.objects.none())),
    )

    assert index.paths() == ["subject", "a", "b__gt", "c", "d__in"]


def test_paths_do_not_take_a_subquerys_own_references():
    inner = Plain.objects.filter(name=OuterRef("title"))

    index = Embeddings("title", condition=Q(Exists(inner)))

    assert index.paths() == ["title"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"chunk_size": 300},
        {"chunk_overlap": 7},
        {"condition": Q(published=True)},
    ],
)
def test_what_makes_other_chunks_makes_another_recipe(change):
    assert Embeddings("title", **change).recipe() != Embeddings("title").recipe()
    assert Embeddings("title", **change).recipe() == Embeddings("title", **change).recipe()


def test_a_recipe_does_not_depend_on_the_embedding_model():
    assert Embeddings("title", model="other").recipe() == Embeddings("title").recipe()


def test_the_overlap_stays_below_the_chunk():
    assert Embeddings("title", chunk_size=60).chunk_overlap == 15


@isolate_apps("tests.testapp")
def test_a_third_partys_model_is_registered():
    class Vendor(models.Model):
        name = models.CharField(max_length=10)

        class Meta:
            app_label = "testapp"

    register(Vendor, Embeddings("name"), app="testapp")

    assert index_of(Vendor).chunk_model.__name__ == "VendorEmbeddingsChunk"
    with pytest.raises(ConfigurationError, match="already has an attribute 'embeddings'"):
        register(Vendor, Embeddings("name"), app="testapp")


@isolate_apps("tests.testapp")
def test_a_field_with_the_name_of_the_chunks_lookup_is_a_check_error():
    class Clashing(models.Model):
        title = models.CharField(max_length=10)
        embeddings_chunk = models.IntegerField()
        embeddings = Embeddings("title")

        class Meta:
            app_label = "testapp"

    errors = index_of(Clashing).chunk_model.check()

    assert "fields.E303" in [error.id for error in errors]


def test_constraint_names_fit_postgresql():
    name = declaration._constraint_name("a" * 60, "B" * 60)

    assert len(name) <= 63
