"""Models of every shape that may declare embeddings."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from django_services.embeddings.declaration import Embeddings
from django_services.embeddings.search import SearchManager, SearchQuerySet


class Publisher(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Author(models.Model):
    name = models.CharField(max_length=100)
    publisher = models.ForeignKey(Publisher, models.SET_NULL, null=True, blank=True)

    def __str__(self) -> str:
        return self.name


class Category(models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        verbose_name_plural = "categories"

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class ArticleQuerySet(SearchQuerySet["Article"]):
    def published(self) -> ArticleQuerySet:
        return self.filter(published=True)


class Article(models.Model):
    """The main case: two fields, a condition, relations to filter by."""

    title = models.CharField(max_length=200)
    body = models.TextField(blank=True)
    category = models.ForeignKey(Category, models.CASCADE, null=True, blank=True)
    tags = models.ManyToManyField(Tag, blank=True)
    published = models.BooleanField(default=True)
    views = models.IntegerField(default=0)
    created_on = models.DateField(null=True, blank=True)

    embeddings = Embeddings("title", "body", condition=Q(published=True))

    objects = ArticleQuerySet.as_manager()

    def __str__(self) -> str:
        return self.title


class FeaturedArticle(Article):
    """A proxy: shares the parent's embeddings."""

    class Meta:
        proxy = True


class BlogPost(Article):
    """Multi-table inheritance: shares the parent's embeddings."""

    slug = models.SlugField()


class Place(models.Model):
    """A parent without embeddings."""

    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Restaurant(Place):
    """Embeds a column of its parent's table."""

    menu = models.TextField()

    embeddings = Embeddings("name", "menu")


class Book(models.Model):
    """Follows relations: forward, many-to-many and reverse."""

    title = models.CharField(max_length=200)
    author = models.ForeignKey(Author, models.SET_NULL, null=True, blank=True)
    tags = models.ManyToManyField(Tag, blank=True)

    embeddings = Embeddings(
        "title", "author__name", "author__publisher__name", "tags__name", "reviews__text"
    )

    objects = SearchManager()

    def __str__(self) -> str:
        return self.title


class Review(models.Model):
    book = models.ForeignKey(Book, models.CASCADE, related_name="reviews")
    text = models.TextField()

    def __str__(self) -> str:
        return self.text


class Note(models.Model):
    """A UUID key, and a callable as text."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    subject = models.CharField(max_length=200)
    author = models.ForeignKey(Author, models.CASCADE, null=True, blank=True)

    def as_text(self) -> str:
        return f"{self.subject} by {self.author.name if self.author else 'nobody'}"

    embeddings = Embeddings(text=as_text, watch=("subject", "author__name"))

    def __str__(self) -> str:
        return self.subject


class Page(models.Model):
    """A text key, two declarations and odd names of table and columns."""

    slug = models.CharField(max_length=50, primary_key=True)
    heading = models.CharField(max_length=200, db_column="Head Ing")
    content = models.TextField(db_column="con-tent")

    headings = Embeddings("heading")
    contents = Embeddings("content", chunk_size=200, chunk_overlap=20)

    objects = SearchManager()

    class Meta:
        db_table = "odd pages"

    def __str__(self) -> str:
        return self.slug


class Described(models.Model):
    """An abstract base that hands its embeddings on."""

    description = models.TextField()

    embeddings = Embeddings("description")

    class Meta:
        abstract = True


class Product(Described):
    sku = models.CharField(max_length=20)


class Service(Described):
    price = models.DecimalField(max_digits=8, decimal_places=2)


class Plain(models.Model):
    """A model that declares none."""

    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name
