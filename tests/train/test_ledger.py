"""The ledger in a real MLflow: nothing is lost, nothing is half done, and who comes second is told."""

import multiprocessing
import re
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from train.ledger import Change, Ledger, append, ledger_name, new_change_id, newest_number, read_ledger, whoami
from train.registry import registered_name
from train.tracking import TrackingTarget, connect, start_run


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


def a_model(uri: str, dataset: str) -> None:
    """A registered version that entries can be shown as."""
    with start_run(TrackingTarget(tracking_uri=uri, experiment=dataset, run_name="a model")) as run:
        run.client.create_registered_model(registered_name(dataset, "two-tower"))
        source = f"{run.client.get_run(run.run_id).info.artifact_uri}/two-tower"
        run.client.create_model_version(registered_name(dataset, "two-tower"), source, run.run_id)


def change(before: Ledger, variant: str, kind: str = "promotion", **changes: object) -> Change:
    values = {
        "kind": kind,
        "id": new_change_id(),
        "who": whoami(),
        "follows": before.last.number if before.last else 0,
        "from_variant": before.champion,
        "to_variant": variant,
        "versions": {"two-tower": "1", "ranker": "1"},
        "gate": None,
        "forced": None,
    }
    return Change.model_validate(values | changes)


def write(uri: str, dataset: str, *changes: Change) -> Ledger:
    shown_as = connect(uri).get_model_version(registered_name(dataset, "two-tower"), "1")
    ledger = read_ledger(uri, dataset)
    for each in changes:
        ledger = append(uri, dataset, each, shown_as)
    return ledger


def walk(uri: str, dataset: str, *steps: tuple[str, str]) -> Ledger:
    """Promotions and rollbacks, each by somebody who saw the one before."""
    for kind, variant in steps:
        write(uri, dataset, change(read_ledger(uri, dataset), variant, kind))
    return read_ledger(uri, dataset)


def test_a_data_set_that_nothing_was_promoted_of_has_an_empty_ledger(uri: str) -> None:
    ledger = read_ledger(uri, "nothing")
    assert (ledger.entries, ledger.champion, ledger.last, ledger.earlier()) == ([], None, None, [])
    assert newest_number(connect(uri), "nothing") == 0


def test_what_is_written_is_read_in_order(uri: str) -> None:
    a_model(uri, "order")
    ledger = walk(uri, "order", ("promotion", "a"), ("promotion", "b"), ("rollback", "a"))
    assert ledger.champion == "a"
    assert [(entry.number, entry.kind, entry.from_variant, entry.to_variant) for entry in ledger.entries] == [
        (1, "promotion", None, "a"),
        (2, "promotion", "a", "b"),
        (3, "rollback", "b", "a"),
    ]
    assert all(entry.in_effect and entry.who == whoami() and entry.when.tzinfo for entry in ledger.entries)
    assert newest_number(connect(uri), "order") == 3


@pytest.mark.parametrize(
    ("steps", "earlier"),
    [
        ([("promotion", "a")], []),
        ([("promotion", "a"), ("promotion", "b"), ("promotion", "c")], ["b", "a"]),
        ([("promotion", "a"), ("promotion", "b"), ("rollback", "a")], []),
        ([("promotion", "a"), ("promotion", "b"), ("rollback", "a"), ("promotion", "c")], ["a"]),
        ([("promotion", "a"), ("promotion", "b"), ("rollback", "a"), ("rollback", "b")], ["a"]),
        ([("promotion", "a"), ("promotion", "b"), ("promotion", "a")], ["b"]),
    ],
)
def test_a_rollback_leads_to_the_champions_before_not_to_what_was_rolled_back(
    uri: str, steps: list[tuple[str, str]], earlier: list[str], request: pytest.FixtureRequest
) -> None:
    dataset = re.sub(r"\W", "", request.node.callspec.id)
    a_model(uri, dataset)
    ledger = walk(uri, dataset, *steps)
    assert ledger.earlier() == earlier
    assert set(ledger.champions()) == {variant for _, variant in steps}
    assert ledger.champions()[0] == ledger.champion


def test_who_saw_an_older_ledger_has_no_effect_and_is_told(uri: str) -> None:
    a_model(uri, "late")
    empty = read_ledger(uri, "late")
    write(uri, "late", change(empty, "first"))
    with pytest.raises(TowerlineError, match=r"made variant first champion meanwhile \(entry 1 .*list_promotions"):
        write(uri, "late", change(empty, "second"))
    ledger = walk(uri, "late", ("promotion", "third"))
    assert [(entry.to_variant, entry.in_effect) for entry in ledger.entries] == [
        ("first", True),
        ("second", False),
        ("third", True),
    ]
    assert ledger.champions() == ["third", "first"]
    assert ledger.earlier() == ["first"]


def test_an_entry_whose_answer_was_lost_and_that_was_sent_again_counts_once(uri: str) -> None:
    a_model(uri, "again")
    sent = change(read_ledger(uri, "again"), "a")
    ledger = write(uri, "again", sent, sent)
    assert [entry.to_variant for entry in ledger.entries] == ["a"]
    assert walk(uri, "again", ("promotion", "b")).champion == "b"


def _promote_often(uri: str, dataset: str, name: str, times: int, results: "multiprocessing.Queue[int]") -> None:
    """As often as it takes for so many promotions to take effect; tells how many entries it wrote."""
    written, done = 0, 0
    while done < times:
        written += 1
        try:
            write(uri, dataset, change(read_ledger(uri, dataset), f"{name}-{written}"))
            done += 1
        except TowerlineError:
            continue
    results.put(written)


@pytest.mark.cluster
def test_two_at_once_lose_no_entry_and_each_follows_the_one_before(uri: str) -> None:
    """Two processes, five promotions each: the entries in effect are a chain, and all are there."""
    a_model(uri, "race")
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    writers = [context.Process(target=_promote_often, args=(uri, "race", name, 5, results)) for name in "ab"]
    for writer in writers:
        writer.start()
    written = sum(results.get(timeout=120) for _ in writers)
    for writer in writers:
        writer.join()
    ledger = read_ledger(uri, "race")
    assert len(ledger.entries) == written
    effective = [entry for entry in ledger.entries if entry.in_effect]
    assert len(effective) == 10
    assert [entry.from_variant for entry in effective[1:]] == [entry.to_variant for entry in effective[:-1]]


def test_the_ledger_is_a_registered_model_that_mlflow_shows(uri: str) -> None:
    a_model(uri, "shown")
    walk(uri, "shown", ("promotion", "a"))
    version = connect(uri).get_model_version(ledger_name("shown"), "1")
    assert (version.tags["variant"], version.tags["kind"], version.tags["who"]) == ("a", "promotion", whoami())
    assert version.run_id is not None
    assert Path(str(version.source)).name == "two-tower"
