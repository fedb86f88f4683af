"""System checks of DJANGO_SERVICES["OPENAI"]: what can be read, and yet would not work.

| id | what is wrong |
|---|---|
| django_services.E201 | the base URL is no address that the client can build on |
| django_services.E202 | a model is of another kind than it is set for |
| django_services.E203 | a model is shut down |
| django_services.W201 | an alias is described, but has no key |
| django_services.W202 | the path of a key file depends on the working directory |
| django_services.W203 | key and prompts would cross the internet unencrypted |
| django_services.W204 | a model is not known |
| django_services.W205 | a model will be shut down within 90 days |
| django_services.W206 | a timeout, or a deadline, can never be reached |
| django_services.W207 | a call may outlive the worker's lease on what it embeds |
| django_services.W208 | budgets refuse the calls of a model, since their cost is not known |
| django_services.W209 | no request of usual size keeps a limit of tokens |
| django_services.W210 | each process has limits and budgets of its own (``--deploy``) |

None does any I/O. What concerns models is asked for addresses of OpenAI only: others
have models of their own, and dates of their own for OpenAI's.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterator
from pathlib import PurePath
from urllib.parse import urlsplit

from django.core import checks
from django.core.checks import CheckMessage

from .. import conf
from ..conf import OpenAISettings
from ..env.values import nearest
from ..exceptions import ConfigurationError
from . import catalogue

_NOTICE = datetime.timedelta(days=90)
_DEPRECATIONS = "https://developers.openai.com/api/docs/deprecations"
_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_ENDPOINTS = ("/chat/completions", "/responses", "/embeddings", "/moderations", "/models")
_LONGEST_TEXT = 8_192  # tokens, that the API embeds

#: The settings that name a model, with the kind that it must be.
_ROLES = {"MODEL": "chat", "EMBEDDING_MODEL": "embedding", "MODERATION_MODEL": "moderation"}

Found = Iterator[CheckMessage]


def check_openai() -> list[CheckMessage]:
    """Check every alias that can be read; of the others `django_services.checks` tells."""
    return [
        message
        for alias, settings in _aliases()
        for check in (_CHECKS if settings.is_configured else _UNCONFIGURED)
        for message in check(alias, settings)
    ]


def check_sharing() -> list[CheckMessage]:
    """Check that limits and budgets count the calls of all processes."""
    return [message for alias, settings in _aliases() for message in _shared(alias, settings)]


def _aliases() -> Iterator[tuple[str, OpenAISettings]]:
    try:
        aliases = conf.openai_aliases()
    except ConfigurationError:
        return
    for alias in aliases:
        try:
            settings = conf.openai_section(alias)
        except ConfigurationError:
            continue
        if not settings.is_embedded:
            yield alias, settings


# Key and address


def _key(alias: str, settings: OpenAISettings) -> Found:
    if settings != OpenAISettings() and not conf.debug():
        yield checks.Warning(
            f"OpenAI {alias!r} is described in DJANGO_SERVICES, but has no key: each of its calls "
            "raises ServiceNotConfigured.",
            hint="Set OPENAI_API_KEY, API_KEY_FILE, or the BASE_URL of a server that needs none.",
            id="django_services.W201",
        )


def _key_file(alias: str, settings: OpenAISettings) -> Found:
    path = settings.api_key_file
    if path and not PurePath(path).is_absolute():
        yield checks.Warning(
            f"OpenAI {alias!r} has API_KEY_FILE {path!r}, which is looked for in the directory "
            "that a process happens to start in.",
            hint="Give the whole path, as with BASE_DIR / 'key'.",
            id="django_services.W202",
        )


def _address(alias: str, settings: OpenAISettings) -> Found:
    if fault := _fault_of_address(settings):
        yield checks.Error(
            f"OpenAI {alias!r} has BASE_URL {settings.base_url!r}, {fault[0]}.",
            hint=fault[1],
            id="django_services.E201",
        )


def _fault_of_address(settings: OpenAISettings) -> tuple[str, str] | None:
    """Return what is wrong with the base URL, and the fix."""
    path = urlsplit(settings.base_url).path
    for endpoint in _ENDPOINTS:
        if path.endswith(endpoint):
            root = settings.base_url.removesuffix(endpoint)
            return f"which is that of one endpoint ({endpoint})", f"Set it to {root}."
    if _is_openai(settings) and not path.startswith("/v1"):
        return "which lacks the version", f"Set it to {conf.OPENAI_URL}."
    is_azure = _host(settings).endswith(_AZURE)
    if is_azure and not settings.api_version and not path.endswith("/openai/v1"):
        fix = "End it in /openai/v1, or set OPENAI_API_VERSION."
        return "an address of Azure without a version", fix
    return None


def _encryption(alias: str, settings: OpenAISettings) -> Found:
    if settings.base_url.startswith("http://") and _is_public(_host(settings)):
        yield checks.Warning(
            f"OpenAI {alias!r} is reached at {settings.base_url}: whoever is on the way reads "
            "the key and the prompts.",
            hint="Set BASE_URL to an address that starts with https://.",
            id="django_services.W203",
        )


def _host(settings: OpenAISettings) -> str:
    return urlsplit(settings.base_url).hostname or ""


def _is_openai(settings: OpenAISettings) -> bool:
    # Those of a region too: eu.api.openai.com.
    return f".{_host(settings)}".endswith(".api.openai.com")


def _is_public(host: str) -> bool:
    """Tell whether a host is on the internet, as far as its name says."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".localhost", ".local", ".internal", ".lan"))


# Models


def _models(alias: str, settings: OpenAISettings) -> Found:
    if not _is_openai(settings):
        return
    for key, kind in _ROLES.items():
        name = getattr(settings, key.lower())
        model = catalogue.find(name)
        if model is None:
            yield from _unknown(alias, settings, f"{key} {name!r}", name, kind)
        elif model.kind != kind:
            yield checks.Error(
                f"OpenAI {alias!r} has {key} {name!r}, which is of kind {model.kind}, not {kind}.",
                hint=f"Set it to a model such as {_nearest(name, kind)!r}.",
                id="django_services.E202",
            )
        elif model.shutdown is not None:
            yield from _shutdown(alias, f"{key} {name!r}", model.shutdown)


def _limited_models(alias: str, settings: OpenAISettings) -> Found:
    if _is_openai(settings):
        for name in settings.model_limits:
            if catalogue.find(name) is None:
                place = f"MODEL_LIMITS[{name!r}]"
                yield from _unknown(alias, settings, place, name, None)


def _unknown(
    alias: str, settings: OpenAISettings, place: str, name: str, kind: str | None
) -> Found:
    # Fine-tuned models have names of their own; one that the project prices is no slip.
    if name.startswith("ft:") or name in settings.prices:
        return
    yield checks.Warning(
        f"OpenAI {alias!r} has {place}, a model that is not known; the nearest is "
        f"{_nearest(name, kind)!r}.",
        hint="Correct the name. If the model is newer than this package, give its PRICES.",
        id="django_services.W204",
    )


def _shutdown(alias: str, place: str, day: datetime.date) -> Found:
    left = day - _today()
    hint = f"Set it to a model that stays: {_DEPRECATIONS} tells which takes its place."
    if left <= datetime.timedelta(0):
        yield checks.Error(
            f"OpenAI {alias!r} has {place}, which was shut down on {day}.",
            hint=hint,
            id="django_services.E203",
        )
    elif left <= _NOTICE:
        yield checks.Warning(
            f"OpenAI {alias!r} has {place}, which will be shut down on {day}, in {left.days} days.",
            hint=hint,
            id="django_services.W205",
        )


def _nearest(name: str, kind: str | None) -> str:
    """Return the name of a model that is there to stay which is most like one."""
    models = map(catalogue.find, catalogue.names())
    return nearest(
        name,
        [
            model.name
            for model in models
            if model and kind in (None, model.kind) and not model.shutdown
        ],
    )


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


# Time


def _deadlines(alias: str, settings: OpenAISettings) -> Found:
    ordered = [
        ("CONNECT_TIMEOUT", settings.connect_timeout, "TIMEOUT", settings.timeout),
        ("TIMEOUT", settings.timeout, "DEADLINE", settings.deadline),
        ("DEADLINE", settings.deadline, "TASK_DEADLINE", settings.task_deadline),
    ]
    for inner, shorter, outer, longer in ordered:
        if shorter > longer:
            yield checks.Warning(
                f"OpenAI {alias!r} has {inner} {shorter:g} above {outer} {longer:g}: "
                f"{_LATE[outer]}.",
                hint=f"Lower {inner}, or raise {outer}; both are seconds.",
                id="django_services.W206",
            )


#: What comes of it that what such a setting bounds takes longer.
_LATE = {
    "TIMEOUT": "an attempt ends before it has had its time to connect",
    "DEADLINE": "a call ends before its first attempt has had its time, and is never retried",
    "TASK_DEADLINE": "background work gives up earlier than a web request does",
}


def _lease(alias: str, settings: OpenAISettings) -> Found:
    try:
        lease = conf.embeddings().lease
    except ConfigurationError:
        return
    if settings.task_deadline >= lease:
        yield checks.Warning(
            f"OpenAI {alias!r} has TASK_DEADLINE {settings.task_deadline:g}, and EMBEDDINGS has "
            f"LEASE {lease:g}: what a slow call embedded is thrown away, since another worker has "
            "taken the work over.",
            hint="Raise LEASE above TASK_DEADLINE; both are seconds.",
            id="django_services.W207",
        )


# Money and limits


def _budgets(alias: str, settings: OpenAISettings) -> Found:
    if not _has_budgets(settings):
        return
    for key in ("MODEL", "EMBEDDING_MODEL"):
        name = getattr(settings, key.lower())
        if reason := _without_bound(name, key, settings):
            yield checks.Warning(
                f"OpenAI {alias!r} has budgets, and {key} {name!r}, {reason[0]}.",
                hint=reason[1],
                id="django_services.W208",
            )


def _without_bound(name: str, key: str, settings: OpenAISettings) -> tuple[str, str] | None:
    """Return why nobody knows what a call to a model costs at most, and the fix."""
    prices, has_output = settings.prices, key == "MODEL"
    if catalogue.most_expensive(name, 1, 1 if has_output else 0, prices=prices) is None:
        parts = '"INPUT": …, "OUTPUT": …' if has_output else '"INPUT": …'
        return (
            "whose price is not known: its calls are refused",
            f'Set PRICES = {{"{name}": {{{parts}}}}}, in US dollars for a million tokens.',
        )
    if has_output and catalogue.most_expensive(name, 1, prices=prices) is None:
        return (
            "whose longest answer is not known: a call that sets no limit is refused",
            "Pass max_completion_tokens or max_output_tokens with each call.",
        )
    return None


def _limits(alias: str, settings: OpenAISettings) -> Found:
    limits = {"TOKENS_PER_MINUTE": settings.tokens_per_minute} | {
        f"MODEL_LIMITS[{name!r}]": limit.tokens for name, limit in settings.model_limits.items()
    }
    for place, tokens in limits.items():
        if tokens is not None and tokens < _LONGEST_TEXT:
            yield checks.Warning(
                f"OpenAI {alias!r} has {place} {tokens:,}: a request may hold more than that, as "
                f"one text to embed has up to {_LONGEST_TEXT:,} tokens.",
                hint="Set it to the limit that the account's page of limits tells.",
                id="django_services.W209",
            )


def _shared(alias: str, settings: OpenAISettings) -> Found:
    if _has_redis() or not (_has_limits(settings) or _has_budgets(settings)):
        return
    yield checks.Warning(
        f"OpenAI {alias!r} has limits or budgets, and there is no Redis: each process keeps and "
        "forgets its own, so that together they send and spend more.",
        hint="Set REDIS_URL.",
        id="django_services.W210",
    )


def _has_redis() -> bool:
    try:
        return bool(conf.redis_aliases())
    except ConfigurationError:
        return True  # E003 says what is wrong with it


def _has_budgets(settings: OpenAISettings) -> bool:
    own = (settings.daily_budget, settings.monthly_budget)
    return bool(settings.budgets) or any(budget is not None for budget in own)


def _has_limits(settings: OpenAISettings) -> bool:
    own = settings.requests_per_minute or settings.tokens_per_minute
    return bool(own or settings.model_limits)


_Check = Callable[[str, OpenAISettings], Found]
_UNCONFIGURED: tuple[_Check, ...] = (_key,)
_CHECKS: tuple[_Check, ...] = (
    _key_file,
    _address,
    _encryption,
    _models,
    _limited_models,
    _deadlines,
    _lease,
    _budgets,
    _limits,
)
