import gc
import importlib.util
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from data.fingerprints import fingerprint, fingerprint_of_modules

SOURCE = """
def outer(value):
    # how it is done
    return [inner(each) for each in value]


def inner(value):
    return value + 1


def unrelated():
    return inner(2)
"""


def load(folder: Path, source: str) -> ModuleType:
    """A module of its own file, so that the source of its functions can be read."""
    path = folder / f"module_{len(list(folder.iterdir()))}.py"
    path.write_text(source)
    module = ModuleType(path.stem)
    exec(compile(source, path, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# how it is done", "# why it is done", True),
        ("value + 1", "value  +  1", True),
        ("inner(2)", "inner(3)", True),
        ("value + 1", "value + 2", False),
        ("for each in value", "for each in value if each", False),
    ],
)
def test_it_follows_the_code_that_is_reached(old: str, new: str, same: bool, tmp_path: Path) -> None:
    before, after = load(tmp_path, SOURCE).outer, load(tmp_path, SOURCE.replace(old, new)).outer
    assert (fingerprint(before) == fingerprint(after)) is same


def test_it_follows_the_parameters(tmp_path: Path) -> None:
    outer = load(tmp_path, SOURCE).outer
    assert fingerprint(outer, n=1) == fingerprint(outer, n=1)
    assert fingerprint(outer, n=1) != fingerprint(outer, n=2)
    assert fingerprint(outer, n=1) != fingerprint(outer, m=1)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# how it is done", "# why it is done", True),
        ("value + 1", "value  +  1", True),
        ("def inner(value):\n", 'def inner(value):\n    """One more."""\n', True),
        ("inner(2)", "inner(3)", False),
        ("value + 1", "value + 2", False),
    ],
)
def test_a_module_is_all_of_its_code(old: str, new: str, same: bool, tmp_path: Path) -> None:
    before = importable(tmp_path, "one", SOURCE)
    after = importable(tmp_path, "two", SOURCE.replace(old, new))
    assert (fingerprint_of_modules(before) == fingerprint_of_modules(after)) is same
    assert fingerprint_of_modules(before) != fingerprint_of_modules(before, after)


def importable(folder: Path, name: str, source: str) -> ModuleType:
    """A module that says which file it is from."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def threads_change_while_parsing() -> Iterator[None]:
    """The garbage collector comes along in the middle of every tree, and lets the other threads go on."""

    def let_others_go_on(*_: object) -> None:
        time.sleep(1e-4)

    thresholds = gc.get_threshold()
    gc.callbacks.append(let_others_go_on)
    gc.set_threshold(50)
    yield
    gc.callbacks.remove(let_others_go_on)
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("threads_change_while_parsing")
def test_threads_may_take_it_at_the_same_moment() -> None:
    with ThreadPoolExecutor(4) as threads:
        hashes = threads.map(lambda _: (fingerprint_of_modules(textwrap), fingerprint(textwrap.dedent)), range(40))
        assert len(set(hashes)) == 1
