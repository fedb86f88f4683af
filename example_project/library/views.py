"""The search page."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from django_services.exceptions import ServiceError

from .models import Entry

HITS = 10
EXAMPLES = ("how do I compress a file?", "pick a random element", "run a function in a thread")


def search(request: HttpRequest) -> HttpResponse:
    """Show the entries nearest in meaning to what was asked."""
    question = request.GET.get("q", "").strip()
    kind = request.GET.get("kind", "")
    context = {"question": question, "kind": kind, "kinds": Entry.Kind.values}
    context["examples"] = EXAMPLES
    if question:
        entries = Entry.objects.filter(kind=kind) if kind in Entry.Kind else Entry.objects.all()
        try:
            context["hits"] = list(entries.search(question)[:HITS])
        except ServiceError as error:
            context["error"] = str(error)
    return render(request, "library/search.html", context)
