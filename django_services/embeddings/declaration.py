"""What a model declares: which text is embedded, how chunked, by which model.

`Embeddings` is a private field, as GenericForeignKey is: it has no column and
stands in no migration, and abstract bases hand it on. It adds an ordinary model
for the chunks to the declaring app, ``<Model><Attribute>Chunk``, which
makemigrations sees.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from django.apps import apps
from django.db import models, router
from django.db.models import Q
from django.db.models.signals import class_prepared

from ..exceptions import ConfigurationError, InvalidInput
from .models import Chunk

if TYPE_CHECKING:
    from ..conf import EmbeddingsSettings
    from .search import InstanceAccessor, ModelAccessor

    _Field = models.Field[Any, Any]
else:
    _Field = models.Field

#: Raised when a change of this package makes other chunks of the same text.
RECIPE_VERSION = 1


class Embeddings(_Field):
    """Stored embeddings of a model's rows.

    Args:
        fields: Lookups whose values, in this order, make a row's text:
            ``"title"``, ``"author__name"``, ``"tags__name"``.
        text: Instead of ``fields``, a callable from an instance to its text.
        watch: Lookups whose change changes the text; needed with ``text``.
        condition: Which rows are embedded. The others never leave the building.
        model: Embedding model; else the alias's.
        dimensions: Length of the vectors; else the alias's, else the model's own.
        alias: Alias in ``DJANGO_SERVICES["OPENAI"]``.
        chunk_size: Longest chunk, characters; else ``EMBEDDINGS["CHUNK_SIZE"]``.
        chunk_overlap: Characters that a chunk shares with the one before it; else
            ``EMBEDDINGS["CHUNK_OVERLAP"]``.
        version: Raise it when ``text`` returns another text for the same row.

    Raises:
        ConfigurationError: The arguments contradict each other; says how.
    """

    # As GenericForeignKey says of itself: a relation without a column.
    many_to_many = False
    many_to_one = True
    one_to_many = False
    one_to_one = False

    def __init__(
        self,
        *fields: str,
        text: Callable[[Any], str] | None = None,
        watch: Sequence[str] = (),
        condition: Q | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        alias: str = "default",
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
        version: int = 1,
    ) -> None:
        super().__init__(editable=False)
        self.is_relation = True
        self.fields = fields
        self.text = text
        self.watch = (watch,) if isinstance(watch, str) else tuple(watch)
        self.condition = condition
        self.embedding_model = model
        self.dimensions = dimensions
        self.alias = alias
        self._chunk_size = chunk_size
        self._chunk_overlap = chunk_overlap
        self.version = version
        self.app: str | None = None
        self.origin = self
        self.chunk_model: Any  # the subclass of Chunk made below, which has a source
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.fields and self.text is not None:
            raise ConfigurationError("Embeddings takes fields or text=, not both.")
        if not self.fields and self.text is None:
            raise ConfigurationError(
                'Embeddings needs to know what to embed: Embeddings("title", "body") '
                'or Embeddings(text=callable, watch=("title", "body")).'
            )
        names: tuple[object, ...] = self.fields + self.watch
        if not all(isinstance(name, str) and name for name in names):
            raise ConfigurationError(
                "Embeddings takes names of fields, such as "
                f'Embeddings("title", "author__name"); got {names!r}.'
            )
        if self.text is not None and not callable(self.text):
            raise ConfigurationError("Embeddings(text=…) takes a callable from a row to its text.")
        if self.text is not None and not self.watch:
            raise ConfigurationError(
                "Embeddings(text=…) must say which fields the text is made of: "
                'watch=("title", "author__name").'
            )
        if self.condition is not None and not isinstance(self.condition, Q):
            raise ConfigurationError("Embeddings(condition=…) takes a Q object.")

    # -- a private field -------------------------------------------------

    def contribute_to_class(  # type: ignore[override]
        self, cls: type[models.Model], name: str, **_: Any
    ) -> None:
        # A copy inherited from a concrete model serves the declaring model's chunks.
        declaring = getattr(self, "model", None)
        super().contribute_to_class(cls, name, private_only=True)
        setattr(cls, name, self)
        if getattr(self, "mti_inherited", False):
            assert declaring is not None
            self.origin = next(f for f in declaring._meta.private_fields if f.name == name).origin
            return
        self.origin = self
        if not cls._meta.abstract:
            class_prepared.connect(self._add_chunk_model, sender=cls, weak=False)

    def get_attname_column(self) -> tuple[str, None]:
        return self.get_attname(), None

    def is_cached(self, instance: models.Model) -> bool:  # noqa: ARG002 - Django's signature
        """Tell Django, which asks every relation, that a row carries no chunks along."""
        return False

    @overload  # type: ignore[override]
    def __get__(self, instance: None, owner: type[models.Model]) -> ModelAccessor[Any]: ...
    @overload
    def __get__(self, instance: models.Model, owner: type[models.Model]) -> InstanceAccessor: ...
    def __get__(
        self, instance: models.Model | None, owner: type[models.Model]
    ) -> ModelAccessor[Any] | InstanceAccessor:
        from .search import InstanceAccessor, ModelAccessor

        if instance is None:
            return ModelAccessor(owner, self.origin)
        return InstanceAccessor(instance, self.origin)

    def __set__(self, instance: models.Model, value: object) -> None:
        raise AttributeError(
            f"{self.label} is kept in step with the row; it cannot be assigned. "
            "Save the row and run: manage.py embeddings sync"
        )

    # -- what the rest of the package asks -------------------------------

    @property
    def label(self) -> str:
        """The declaration's name, in the database and on the command line."""
        return f"{self.origin.model._meta.label}.{self.name}"

    @property
    def query_name(self) -> str:
        """The lookup from the source model to its chunks, of all spaces."""
        return f"{self.name}_chunk"

    @property
    def chunk_size(self) -> int:
        return _settings().chunk_size if self._chunk_size is None else self._chunk_size

    @property
    def chunk_overlap(self) -> int:
        if self._chunk_overlap is not None:
            return self._chunk_overlap
        return min(_settings().chunk_overlap, self.chunk_size // 4)

    def paths(self) -> list[str]:
        """Return every lookup whose change may change a row's text or its condition."""
        paths = [*self.fields, *self.watch]
        if self.condition is not None:
            paths += _lookups_in(self.condition)
        return list(dict.fromkeys(paths))

    def recipe(self) -> str:
        """Return what identifies the text and its chunks: equal recipes, equal chunks."""
        text = self.text and f"{self.text.__module__}.{self.text.__qualname__}"
        condition = None if self.condition is None else str(self.condition)
        parts = (RECIPE_VERSION, self.version, self.fields, text, condition)
        chunks = (self.chunk_size, self.chunk_overlap)
        return hashlib.sha256(repr((parts, chunks)).encode()).hexdigest()

    # -- the chunk model --------------------------------------------------

    def _add_chunk_model(self, sender: type[models.Model], **_: Any) -> None:
        options = sender._meta
        if options.swapped or options.is_composite_pk:  # the latter a check refuses
            return
        attribute = "".join(part.title() for part in self.name.split("_"))
        name = f"{options.object_name}{attribute}Chunk"
        app_label = self.app or options.app_label
        source = models.ForeignKey(
            sender,
            models.DO_NOTHING,
            db_constraint=False,
            db_index=False,
            related_name="+",
            related_query_name=self.query_name,
        )
        meta = type(
            "Meta",
            (),
            {
                "app_label": app_label,
                "constraints": [
                    models.UniqueConstraint(
                        fields=["source", "space", "number"],
                        name=_constraint_name(app_label, name),
                    )
                ],
                "indexes": [models.Index(fields=["space", "content_hash"])],
                "default_permissions": (),
            },
        )
        attributes = {"__module__": sender.__module__, "Meta": meta, "source": source}
        self.chunk_model = type(name, (Chunk,), attributes)
        # Django's shell, and people, import every model from its module.
        vars(sys.modules[sender.__module__]).setdefault(name, self.chunk_model)


def register(
    model: type[models.Model], embeddings: Embeddings, *, app: str, name: str = "embeddings"
) -> None:
    """Declare embeddings on a model of somebody else's app.

    Call it in your ``models.py``, so that makemigrations finds the chunk model.

    Args:
        model: The model whose rows are embedded.
        embeddings: What is embedded of them.
        app: Label of your app, which gets the chunk model and its migration.
        name: The attribute that ``model`` gets.
    """
    if hasattr(model, name):
        raise ConfigurationError(
            f"{model._meta.label} already has an attribute {name!r}: "
            "give another one, register(…, name=…)."
        )
    embeddings.app = app
    embeddings.contribute_to_class(model, name)
    if not model._meta.abstract:
        embeddings._add_chunk_model(model)


def indexes() -> list[Embeddings]:
    """Return every declaration of the project that can be stored, each once."""
    return [index for index in declarations() if not index.model._meta.is_composite_pk]


def declarations() -> list[Embeddings]:
    """Return every declaration of the project, each once."""
    return [
        field
        for model in apps.get_models()
        for field in model._meta.private_fields
        if isinstance(field, Embeddings) and field.origin is field and not model._meta.swapped
    ]


def indexes_on(alias: str) -> list[Embeddings]:
    """Return the declarations whose model migrates on a database."""
    return [index for index in indexes() if router.allow_migrate_model(alias, index.model)]


def get_index(label: str) -> Embeddings:
    """Return the declaration of a label; case does not matter, and the attribute
    may be left out where the model declares only one.

    Raises:
        InvalidInput: No such declaration; names the nearest.
    """
    known = {index.label: index for index in indexes()}
    wanted = label.lower()
    found = [index for name, index in known.items() if name.lower() == wanted] or [
        index for name, index in known.items() if name.lower().rpartition(".")[0] == wanted
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidInput(
            f"{label!r} declares several embeddings: say which, "
            f"{_listed(index.label for index in found)}."
        )
    lowered = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(wanted, lowered, n=1)
    hint = f"did you mean {lowered[nearest[0]]}?" if nearest else f"known: {_listed(known)}."
    raise InvalidInput(f"No embeddings are declared under {label!r}; {hint}")


def _settings() -> EmbeddingsSettings:
    from .. import conf  # a process that embeds nothing needs no settings

    return conf.embeddings()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none (declare Embeddings on a model)"


def _lookups_in(condition: Q) -> list[str]:
    """Return the lookups and F references that a condition reads."""
    found: list[str] = []
    for child in condition.children:
        if isinstance(child, Q):
            found += _lookups_in(child)
        elif isinstance(child, tuple):
            lookup, value = child
            found.append(lookup)
            found += _references_in(value)
        else:
            found += _references_in(child)
    return found


def _references_in(expression: Any) -> list[str]:
    if isinstance(expression, Q):
        return _lookups_in(expression)
    if isinstance(expression, models.F):
        return [expression.name]  # type: ignore[attr-defined]
    if not hasattr(expression, "get_source_expressions"):
        return []
    parts = [part for part in expression.get_source_expressions() if part is not None]
    return [name for part in parts for name in _references_in(part)]


def _constraint_name(app_label: str, model_name: str) -> str:
    """Return a name that is the same everywhere and within PostgreSQL's 63 bytes."""
    digest = hashlib.sha256(f"{app_label}.{model_name}".encode()).hexdigest()[:8]
    return f"{app_label}_{model_name.lower()}"[:45] + f"_{digest}_uniq"
