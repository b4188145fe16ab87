import types

import pytest

from data.features import views
from data.online.states import tiles
from data.online.stores import definitions
from data.online.stores.definitions import Definitions


def test_the_code_that_packs_states_is_part_of_their_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Definitions(views()).fingerprint
    assert Definitions(views()).fingerprint == before != Definitions(views(20)).fingerprint
    with monkeypatch.context() as patched:
        patched.setattr(definitions, "fingerprint_of_modules", lambda *modules: str(tiles in modules))
        definitions.packing.cache_clear()
        changed = Definitions(views()).fingerprint
    definitions.packing.cache_clear()
    assert changed != before == Definitions(views()).fingerprint


def test_all_modules_that_pack_states_count(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[types.ModuleType] = []
    monkeypatch.setattr(definitions, "fingerprint_of_modules", lambda *modules: counted.extend(modules) or "")
    definitions.packing.__wrapped__()
    names = {module.__name__.rpartition(".")[2] for module in counted}
    assert names == {"layout", "memory", "packed", "recents", "tiles", "update"}
