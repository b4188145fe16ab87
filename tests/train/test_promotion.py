"""Promotion and rollback in a real MLflow, with the models of the workflow."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest

from cluster.errors import TowerlineError
from tests.train.conftest import DonePath
from train import promotion
from train.card import ModelCard
from train.gate import GateConfig
from train.ledger import read_ledger, whoami
from train.promotion import promote, roll_back
from train.registry import (
    RegisteredPair,
    champion_pair,
    find_pair,
    read_cards,
    register_ranking,
    register_retrieval,
    registered_name,
)
from train.tracking import TrackingTarget, connect, start_run

Register = Callable[..., RegisteredPair]
UNCALIBRATED = GateConfig(max_calibration_error=1, max_latency_ms=60_000)
"""Three epochs do not calibrate a ranker, and the machine may be busy."""


@pytest.fixture
def uri(path: DonePath) -> str:
    return path.workflow.settings.tracking_uri


@pytest.fixture
def register(path: DonePath, uri: str) -> Register:
    """Register the workflow's pair again; a `better` one has higher values by user."""
    card = read_cards(uri, path.pair)["ranker"]

    def register(dataset: str, better: bool = False, **changes: object) -> RegisteredPair:
        fresh = {"dataset": dataset, "variant": uuid.uuid4().hex, **changes}
        of_ranker = ModelCard.model_validate(card.model_dump() | fresh)
        raised = path.measured.values.with_columns(pl.col("^ndcg@10.*$") + 0.1 * better)
        with start_run(TrackingTarget(tracking_uri=uri, experiment=dataset, run_name="test")) as run:
            of_two_tower = of_ranker.model_copy(update={"kind": "two-tower"})
            register_retrieval(run, path.served, of_two_tower, path.workflow.dataset.items())
            register_ranking(run, path.ranking.model, of_ranker, raised)
        return find_pair(uri, dataset, of_ranker.variant)

    return register


def test_the_demo_run_again_changes_nothing_and_says_so(uri: str, register: Register) -> None:
    """An equal pair is not better: the first stays champion, and the ledger has no entry for the second."""
    first, again = register("again"), register("again")
    assert promote(uri, "again", first.variant).entry is not None
    decision = promote(uri, "again", again.variant, UNCALIBRATED)
    assert decision.entry is None
    assert decision.report.comparable
    assert [words.split(" against")[0] for words in decision.report.failed] == ["ndcg@10 is +0.0000"]
    assert decision.lines()[-1] == (
        f"variant {again.variant} is registered, not promoted: {first.variant} stays champion; `python -m "
        f"jobs.promote_model --dataset again --variant {again.variant} --force REASON` would promote it"
    )
    assert champion_pair(uri, "again").versions == first.versions
    assert len(read_ledger(uri, "again").entries) == 1


def test_a_better_one_becomes_champion_and_the_ledger_says_why(uri: str, register: Register) -> None:
    first, better = register("better"), register("better", better=True)
    promote(uri, "better", first.variant)
    decision = promote(uri, "better", better.variant, UNCALIBRATED)
    assert decision.report.passed
    assert decision.lines()[-1] == f"variant {better.variant} is champion now (entry 2 of the ledger)"
    entry = read_ledger(uri, "better").entries[-1]
    assert entry == decision.entry
    assert (entry.from_variant, entry.to_variant, entry.who) == (first.variant, better.variant, whoami())
    assert entry.versions == better.versions
    assert entry.gate == decision.report
    assert entry.forced is None


def test_mlflow_shows_the_champion_by_its_alias(uri: str, register: Register) -> None:
    first, second = register("alias"), register("alias")
    promote(uri, "alias", first.variant)
    promote(uri, "alias", second.variant, force="test")
    roll_back(uri, "alias")
    for kind, version in first.versions.items():
        shown = connect(uri).get_model_version_by_alias(registered_name("alias", kind), "champion")
        assert str(shown.version) == version


def test_force_needs_a_reason_which_is_kept(uri: str, register: Register) -> None:
    first, equal = register("force"), register("force")
    promote(uri, "force", first.variant)
    with pytest.raises(TowerlineError, match="--force is empty; it needs a reason"):
        promote(uri, "force", equal.variant, force=" ")
    decision = promote(uri, "force", equal.variant, force="fresher data")
    assert decision.lines()[-1].endswith("(entry 2 of the ledger, forced: fresher data)")
    entry = read_ledger(uri, "force").entries[-1]
    assert entry.forced == "fresher data"
    assert entry.gate is not None
    assert not entry.gate.passed


def test_what_is_not_comparable_is_refused_with_both_named(uri: str, register: Register) -> None:
    promote(uri, "data", register("data").variant)
    decision = promote(uri, "data", register("data", better=True, data_version="other").variant)
    assert decision.entry is None
    assert not decision.report.comparable
    assert "measured on data version other" in decision.report.failed[0]


def test_a_champion_that_cannot_be_served_any_more_is_no_bar(uri: str, register: Register) -> None:
    first, second = register("gone"), register("gone")
    promote(uri, "gone", first.variant)
    shutil.rmtree(urlsplit(str(first.models["ranker"].source)).path)
    decision = promote(uri, "gone", second.variant)
    assert decision.entry is not None
    assert decision.entry.from_variant == first.variant
    assert decision.report.against is None
    (words,) = [check.words for check in decision.report.checks if "cannot be served" in check.words]
    assert f"version {first.versions['ranker']} of model 'gone-ranker'" in words


def test_a_champion_is_not_promoted_again_and_a_broken_one_never(uri: str, register: Register) -> None:
    first, broken = register("twice"), register("twice")
    promote(uri, "twice", first.variant)
    with pytest.raises(TowerlineError, match=f"variant {first.variant} is champion of data set 'twice' already"):
        promote(uri, "twice", first.variant[:12], force="test")
    Path(urlsplit(str(broken.models["two-tower"].source)).path, "item_vectors.npy").unlink()
    with pytest.raises(TowerlineError, match=r"lacks the file item_vectors.npy"):
        promote(uri, "twice", broken.variant, force="test")


def test_rolling_back_goes_to_the_champion_before(uri: str, register: Register) -> None:
    a, b, c = (register("back").variant for _ in range(3))
    with pytest.raises(TowerlineError, match="data set 'back' has no champion to roll back from"):
        roll_back(uri, "back")
    for variant in (a, b, c):
        promote(uri, "back", variant, force="test")
    assert roll_back(uri, "back").to_variant == b
    entry = roll_back(uri, "back")
    assert (entry.kind, entry.from_variant, entry.to_variant, entry.number) == ("rollback", b, a, 5)
    with pytest.raises(TowerlineError, match=rf"no champion of data set 'back' before {a}; name one .* --to: {b}, {c}"):
        roll_back(uri, "back")
    assert roll_back(uri, "back", c[:8]).to_variant == c
    assert champion_pair(uri, "back").variant == c


def test_rolling_back_does_not_lead_around_the_gate(uri: str, register: Register) -> None:
    """Only what was champion can be returned to."""
    first, other = register("around").variant, register("around").variant
    promote(uri, "around", first)
    message = rf"--to is '{other}', expected .* \(there are: none\).*promote_model --dataset around"
    with pytest.raises(TowerlineError, match=message):
        roll_back(uri, "around", other)
    with pytest.raises(TowerlineError, match=rf"no champion of data set 'around' before {first}$"):
        roll_back(uri, "around")


def test_a_kill_after_the_entry_leaves_the_new_pair_for_both_models(
    uri: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the entry decides: whatever would come after it is for show."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    first, second = register("kill"), register("kill")
    promote(uri, "kill", first.variant)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(uri, "kill", second.variant, force="test")
    assert champion_pair(uri, "kill").versions == first.versions
    monkeypatch.setattr(promotion, "_show_in_mlflow", killed)
    with pytest.raises(KeyboardInterrupt):
        promote(uri, "kill", second.variant, force="test")
    assert champion_pair(uri, "kill").versions == second.versions
