"""The layers of the house, as pyproject.toml states them."""

from __future__ import annotations

from .processes import ROOT

LINT = """
    import sys
    from importlinter.cli import lint_imports
    sys.exit(lint_imports(no_cache=True))
"""


def test_modules_import_only_from_layers_below(run_python):
    result = run_python(LINT, setup=False, check=False)

    assert result.returncode == 0, result.stdout


def test_every_module_has_its_layer():
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        (contract,) = tomllib.load(file)["tool"]["importlinter"]["contracts"]

    assert contract["exhaustive"]
