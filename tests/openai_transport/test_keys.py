from __future__ import annotations

import os

import pytest

from django_services import conf
from django_services.exceptions import ConfigurationError
from django_services.openai_transport.keys import key_of


def key(**settings):
    return key_of("default", conf.OpenAISettings(**settings))


def test_a_string_is_the_key():
    assert key(api_key="sk-1") == "sk-1"


def test_a_function_is_asked_each_time():
    keys = iter(["sk-1\n", "sk-2"])
    asked = key(api_key=lambda: next(keys))

    assert [asked(), asked()] == ["sk-1", "sk-2"]


def test_a_file_is_read_again_when_it_is_replaced(tmp_path):
    file, other = tmp_path / "key", tmp_path / "other"
    file.write_text("sk-1\n")
    asked = key(api_key_file=str(file))
    first = asked()
    other.write_text("sk-2\n")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))

    other.replace(file)

    assert [first, asked()] == ["sk-1", "sk-2"]


def test_a_file_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("sk-1")
    asked = key(api_key_file=str(file))
    asked()
    monkeypatch.setattr(type(file), "read_text", lambda *_: pytest.fail("read again"))

    assert asked() == "sk-1"


@pytest.mark.parametrize("content", ["", " \n", "sk 1", "sk-ü", "two\nkeys"])
def test_a_file_without_a_usable_key_is_named(tmp_path, content):
    file = tmp_path / "key"
    file.write_text(content)

    with pytest.raises(ConfigurationError, match=r"API_KEY_FILE.*key") as caught:
        key(api_key_file=str(file))()

    assert not content.strip() or content.strip() not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read: FileNotFoundError"):
        key(api_key_file=str(tmp_path / "none"))()


@pytest.mark.parametrize("given", [None, "", b"sk-1", 7])
def test_a_function_that_gives_no_key_is_named(given):
    with pytest.raises(ConfigurationError, match=r'\["API_KEY"\]\(\) gives no key'):
        key(api_key=lambda: given)()
