from __future__ import annotations

import asyncio
import threading
import unittest

import pytest
from django.test import SimpleTestCase, override_settings

from django_services import conf, openai_service
from django_services.exceptions import ServiceNotConfigured
from django_services.openai_service import (
    aembed,
    embed,
    embedding_space,
    get_async_openai_client,
    get_openai_client,
)
from django_services.openai_transport import waiting
from django_services.testing import FakeOpenAI, fake_openai

NO_KEY = {"OPENAI": {"default": {"API_KEY": ""}}}


def respond():
    response = get_openai_client().responses.create(model="gpt-6-luna", input="What is it?")
    return response.output_text


def run_case(case):
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


# A block


def test_no_key_is_needed(settings):
    settings.DEBUG = False
    settings.DJANGO_SERVICES = NO_KEY

    with fake_openai() as fake:
        embed(["text"])

    fake.assert_embedded("text")
    with pytest.raises(ServiceNotConfigured):
        embed(["text"])


def test_a_key_is_not_asked_for(settings):
    def ask():
        raise AssertionError("the vault was asked")

    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": ask}}}

    with fake_openai():
        assert respond()


def test_the_embedded_model_does_not_answer(settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"BASE_URL": "embedded://"}}}

    with fake_openai():
        inside = embedding_space()

    assert inside == ("text-embedding-3-small", 1_536)
    assert embedding_space()[0] == "embedded-wordpiece-256"


def test_azure_is_answered_too(settings):
    azure = {"API_VERSION": "2026-01-01", "BASE_URL": "https://mine.openai.azure.com"}
    settings.DJANGO_SERVICES = {"OPENAI": {"default": azure}}

    with fake_openai() as fake:
        client = get_openai_client()
        client.chat.completions.create(model="mine", messages=[{"role": "user", "content": "a"}])

    fake.assert_called("/chat/completions", model="mine")


def test_every_alias_is_answered(settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {}, "archive": {"BASE_URL": "http://x/v1"}}}

    with fake_openai() as fake:
        embed(["text"], alias="archive")

    assert [call.alias for call in fake.calls] == ["archive"]


def test_clients_are_made_anew_on_entering_and_on_leaving():
    before = get_openai_client()
    with fake_openai():
        inside = get_openai_client()
    after = get_openai_client()

    assert len({id(before), id(inside), id(after)}) == 3


def test_everything_is_as_before_after_an_error():
    with pytest.raises(KeyError), fake_openai():
        raise KeyError

    assert (conf.fake_network, waiting.instead) == ("", None)
    assert openai_service.is_embedded()


def test_the_inner_of_two_fakes_answers():
    with fake_openai() as outer:
        with fake_openai() as inner:
            respond()
        inner.assert_called(times=1)
        outer.assert_not_called()
        respond()

    outer.assert_called(times=1)
    inner.assert_called(times=1)


def test_one_fake_may_be_entered_twice():
    faking = fake_openai()

    with faking as outer, faking as inner:
        respond()

    assert (len(outer.calls), len(inner.calls)) == (0, 1)


def test_settings_that_change_inside_hold():
    with fake_openai() as fake:
        embed(["text"])
        with override_settings(
            DJANGO_SERVICES={"OPENAI": {"default": {"EMBEDDING_MODEL": "text-embedding-3-large"}}}
        ):
            embed(["text"])

    assert [call.model for call in fake.calls] == [
        "text-embedding-3-small",
        "text-embedding-3-large",
    ]


def test_threads_are_answered():
    with fake_openai() as fake:
        threads = [threading.Thread(target=respond) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    fake.assert_called("/responses", times=8)


def test_event_loops_are_answered():
    async def call():
        await asyncio.gather(*(aembed([f"text {number}"]) for number in range(4)))

    with fake_openai() as fake:
        asyncio.run(call())
        asyncio.run(call())

    fake.assert_called("/embeddings", times=8)


def test_a_fake_begun_within_a_loop_answers_it():
    async def call():
        before = get_async_openai_client()
        with fake_openai() as fake:
            await aembed(["text"])
            inside = get_async_openai_client()
        return before, inside, get_async_openai_client(), fake

    before, inside, after, fake = asyncio.run(call())

    fake.assert_called(times=1)
    assert len({id(before), id(inside), id(after)}) == 3


# A decorator


def test_a_function_is_decorated():
    @fake_openai()
    def test():
        return respond()

    assert test() == "This is a fake answer."


def test_a_function_gets_the_fake_by_its_name():
    @fake_openai()
    def test(first, fake_openai):
        fake_openai.reply(first)
        return respond()

    assert test("told") == "told"


def test_an_async_function_is_decorated():
    @fake_openai()
    async def test(fake_openai):
        await aembed(["text"])
        return fake_openai

    fake = asyncio.run(test())

    fake.assert_embedded("text")


def test_each_run_of_a_function_has_a_fake_of_its_own():
    @fake_openai()
    def test(fake_openai):
        respond()
        return len(fake_openai.calls)

    assert [test(), test()] == [1, 1]


def test_each_test_of_a_case_has_a_fake_of_its_own():
    @fake_openai()
    class Case(SimpleTestCase):
        def setUp(self):
            respond()

        def test_one(self):
            self.fake_openai.assert_called(times=1)

        async def test_two(self):
            await aembed(["text"])
            self.fake_openai.assert_called(times=2)

    result = run_case(Case)

    assert (result.testsRun, result.errors, result.failures) == (2, [], [])
    assert not conf.fake_network


def test_the_tests_of_a_plain_class_are_decorated():
    @fake_openai()
    class Tests:
        def test_one(self, fake_openai):
            assert isinstance(fake_openai, FakeOpenAI)
            return self.helper()

        def helper(self):
            return respond()

    assert Tests().test_one() == "This is a fake answer."
