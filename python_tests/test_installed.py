"""``python -m pytest`` at the root of the repository: the installed package is tested, or the remedy is said."""

import shutil
import subprocess
import sys

import installed
import pytest

import chaos_ext


@pytest.fixture
def tree(tmp_path):
    """A source tree that was not built, with one test of the package."""
    (tmp_path / "chaos_ext").mkdir()
    (tmp_path / "chaos_ext" / "__init__.py").write_text("raise ImportError('no native library here')")
    (tmp_path / "python_tests").mkdir()
    shutil.copy(installed.__file__, tmp_path / "python_tests")
    (tmp_path / "python_tests" / "conftest.py").write_text("import installed")
    (tmp_path / "python_tests" / "test_a.py").write_text(
        "import chaos_ext\ndef test_a():\n    print(chaos_ext.__file__)"
    )
    return tmp_path


def pytest_at(root, *options):
    command = [sys.executable, *options, "-m", "pytest", "-sq", "-p", "no:cacheprovider", "python_tests"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)


def test_the_installed_package_is_found_beside_an_unbuilt_source_tree(tree):
    done = pytest_at(tree)
    assert done.returncode == 0, done.stdout
    assert chaos_ext.__file__ in done.stdout


def test_without_an_installed_package_the_remedy_is_said(tree):
    (tree / "python_tests" / "conftest.py").write_text(
        "import importlib.util as u; u.find_spec = lambda name: None\nimport installed"
    )
    done = pytest_at(tree)
    assert done.returncode == 4
    assert 'run: pip install ".[test,figures]"' in done.stdout + done.stderr


def test_a_tree_that_was_built_in_place_stays_on_the_path(tmp_path):
    path = ["", str(tmp_path), "/elsewhere"]
    (tmp_path / "chaos_ext").mkdir()
    assert installed.without_unbuilt(path, tmp_path) == ["", "/elsewhere"]
    assert installed.without_unbuilt(path, installed.ROOT) in (path, path[1:])
    (tmp_path / "chaos_ext" / "_C.abi3.so").touch()
    assert installed.without_unbuilt(path, tmp_path) == path


def test_what_tests_start_does_not_find_the_source_tree():
    """``python -c`` and ``python -m`` look in the folder that they are started in before anything else."""
    code = "import importlib.util, sys; print(importlib.util.find_spec('chaos_ext').origin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == chaos_ext.__file__
