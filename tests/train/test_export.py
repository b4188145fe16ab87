"""A pair as files: what onnxruntime gives is what torch gives, and what does not agree leaves nothing behind."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cluster.errors import TowerlineError
from tests.train.conftest import RANKING, DonePath
from train import export
from train.asked import Asked, asked, first_candidates
from train.candidates import ItemFeatures
from train.export import (
    MANIFEST_FILE,
    TOLERANCE,
    ExportManifest,
    checked,
    difference,
    load_export,
    read_manifest,
    whole_folder,
    write_export,
)
from train.export_figures import Runtime, costs_of, figures_of, qualities_of
from train.held_out import held_out_twin
from train.index import overlap
from train.models.onnx_network import tensors_of
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.models.runtimes import RetrievalRunBy
from train.pair import RankedRecommender
from train.registry import LoadedModels, load_pair
from train.training_rows import TRAIN_SPLIT

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Exported:
    folder: Path
    models: LoadedModels
    asked: Asked
    manifest: ExportManifest


class Pairing:
    def __init__(self, path: DonePath) -> None:
        self._items = ItemFeatures(path.workflow.known_events, path.refitted.model.vocabulary)

    def __call__(self, retrieval: RetrievalModel, ranking: RankingModel) -> RankedRecommender:
        return RankedRecommender(retrieval, ranking, self._items, RANKING.num_candidates)


@pytest.fixture(scope="module")
def pairing(path: DonePath) -> Pairing:
    return Pairing(path)


@pytest.fixture(scope="module")
def exported(path: DonePath, pairing: Pairing, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The registered pair with the two-tower of the train split, which its registered figures were measured with."""
    uri = path.workflow.settings.tracking_uri
    models = load_pair(uri, path.pair)
    twin = held_out_twin(uri, path.pair, models.cards["two-tower"], TRAIN_SPLIT)
    models = dataclasses.replace(models, retrieval=twin)
    cases = path.workflow.cases(twin.vocabulary)
    found = asked(pairing, twin, models.ranking, cases.rows[:100], cases.exclude[:100])
    folder = tmp_path_factory.mktemp("export") / "pair"
    with whole_folder(folder) as unfinished:
        manifest = write_export(unfinished, models, found, int8=True)
    return Exported(folder, models, found, manifest)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_user_tower_gives_what_torch_gives_with_and_without_a_history(exported: Exported, size: int) -> None:
    retrieval, users = load_export(exported.folder).retrieval, exported.asked.users[:size]
    for each in (users, users.without_history()):
        expected = exported.models.retrieval.vectors_of(each)
        assert expected.shape == (size, 17)
        np.testing.assert_allclose(retrieval.vectors_of(each), expected, rtol=1e-4, atol=1e-5)
    known, unknown = (retrieval.vectors_of(each) for each in (users, users.without_history()))
    assert np.abs(known - unknown).max() > 0.01


@pytest.mark.parametrize(("size", "candidates"), [(1, 1), (1, 20), (3, 7), (100, 20)])
def test_the_ranker_gives_what_torch_gives(exported: Exported, size: int, candidates: int) -> None:
    inputs = first_candidates(exported.asked.inputs[torch.arange(size)], candidates)
    empty = dataclasses.replace(
        inputs, candidates_BK=torch.where(torch.arange(candidates) < 5, inputs.candidates_BK, 0)
    )
    ranking = load_export(exported.folder).ranking
    for each in (inputs, empty):
        expected = exported.models.ranking.scores_of(each)
        assert expected.shape == (size, candidates)
        np.testing.assert_allclose(ranking.scores_of(each), expected, rtol=1e-4, atol=1e-5)
    assert np.isneginf(ranking.scores_of(empty)[:, 5:]).all()


def test_inputs_are_named_after_the_fields(exported: Exported) -> None:
    by_file = {name: [spec.name for spec in file.inputs] for name, file in exported.manifest.networks.items()}
    users, ranker = list(tensors_of(exported.asked.users)), list(tensors_of(exported.asked.inputs))
    assert by_file == {
        "two-tower/user_tower.onnx": users,
        "two-tower/user_tower_int8.onnx": users,
        "ranker/ranker.onnx": ranker,
        "ranker/ranker_int8.onnx": ranker,
    }
    shapes = {spec.name: spec.shape for spec in exported.manifest.networks["ranker/ranker.onnx"].inputs}
    assert shapes["candidates_BK"] == ("B", "K")
    assert shapes["candidate_features_BKF"][:2] == ("B", "K")


def test_the_manifest_says_where_it_comes_from_and_comes_back(exported: Exported, path: DonePath) -> None:
    manifest = read_manifest(exported.folder)
    assert manifest == exported.manifest
    card = exported.models.cards["two-tower"]
    assert (manifest.dataset, manifest.variant, manifest.data_version) == (
        "planted",
        path.pair.variant,
        card.data_version,
    )
    assert manifest.model_versions == path.pair.versions
    assert manifest.feature_fingerprints == card.feature_fingerprints
    assert manifest.checked_users == 100
    for file in manifest.networks.values():
        assert file.opset >= 18
        if file.precision == "float32":
            assert file.tolerance == TOLERANCE
            assert 0 < file.difference <= TOLERANCE
        else:
            assert file.tolerance is None
            assert TOLERANCE < file.difference < 1


def test_what_is_exported_is_read_as_it_was(exported: Exported) -> None:
    loaded = load_export(exported.folder, "int8")
    np.testing.assert_array_equal(loaded.retrieval.item_vectors_ID, exported.models.retrieval.item_vectors_ID)
    assert loaded.retrieval.vocabulary == exported.models.retrieval.vocabulary
    weights, expected = loaded.ranking.network.state_dict(), exported.models.ranking.network.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    small, large = (
        (exported.folder / "two-tower" / name).stat().st_size for name in ("user_tower_int8.onnx", "user_tower.onnx")
    )
    assert small < large
    assert not any(b"/train/models/" in file.read_bytes() for file in exported.folder.rglob("*.onnx"))


@pytest.mark.parametrize("how", ["missing", "is not as it was exported"])
def test_an_altered_export_is_refused(exported: Exported, tmp_path: Path, how: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    manifest = exported.manifest.model_copy(update={"files": {"ranker/ranker.onnx": "0" * 64}})
    (copy / MANIFEST_FILE).write_text(manifest.model_dump_json())
    if how != "missing":
        (copy / "ranker").mkdir()
        (copy / "ranker" / "ranker.onnx").write_bytes(b"other")
    with pytest.raises(TowerlineError, match=f"ranker/ranker.onnx .*{how}.*; export the model again"):
        read_manifest(copy)
    (copy / MANIFEST_FILE).write_text("{}")
    with pytest.raises(TowerlineError, match=r"manifest.json is no manifest of an export"):
        load_export(copy)


def test_a_network_that_gives_something_else_is_refused_and_nothing_is_left(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is given another two-tower than the one that it is checked against."""
    wrong = RetrievalRunBy(
        exported.models.retrieval, lambda users: exported.models.retrieval.vectors_of(users) + np.float32(0.01)
    )
    source = exported.folder / "two-tower" / "user_tower.onnx"
    monkeypatch.setattr(export, "export_user_tower", lambda *into: into[-1].write_bytes(source.read_bytes()))
    models = dataclasses.replace(exported.models, retrieval=wrong)
    message = r"user_tower.onnx: output 'user_vectors_BD' differs from torch by 0\.01.*, and 0\.0001 is allowed"
    with pytest.raises(TowerlineError, match=message), whole_folder(tmp_path / "out") as unfinished:
        write_export(unfinished, models, exported.asked)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_is_no_number_is_too_large(exported: Exported) -> None:
    nothing = np.full((1, 17), np.nan, dtype=np.float32)

    def one() -> Iterator[object]:
        yield exported.asked.users[:1]

    with pytest.raises(TowerlineError, match="differs from torch by inf"):
        checked(exported.folder / "two-tower" / "user_tower.onnx", lambda _: nothing, one, TOLERANCE)


def test_differences_by_hand() -> None:
    one = np.array([[0.5, 100.0, -np.inf]], dtype=np.float32)
    assert difference(one, one) == 0
    assert difference(one, one + np.float32(0.5)) == pytest.approx(0.5)
    assert difference(one[:, 1:], np.array([[101.0, -np.inf]], dtype=np.float32)) == pytest.approx(0.01)
    for other in ([[0.5, 100.0, np.inf]], [[0.5, 100.0, 0.0]], [[0.5, np.nan, -np.inf]], [[0.5, 100.0]]):
        assert difference(one, np.array(other, dtype=np.float32)) == np.inf


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def write(text: str) -> None:
        with whole_folder(folder) as unfinished:
            (unfinished / MANIFEST_FILE).write_text(json.dumps({"format": export.FORMAT}))
            (unfinished / "content").write_text(text)

    folder.mkdir()
    for text in ("first", "second"):
        write(text)
        assert (folder / "content").read_text() == text
    with pytest.raises(ZeroDivisionError), whole_folder(folder):
        _ = 1 / 0
    assert (folder / "content").read_text() == "second"
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(TowerlineError, match=r"--output .*out is there and holds no earlier export"):
        write("third")
    assert (folder / "content").read_text() == "second"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_figures_are_those_of_the_evaluation(exported: Exported, path: DonePath, pairing: Pairing) -> None:
    """Torch is measured as when the pair was registered; ONNX gives the same lists, int8 nearly."""
    loaded = {"onnx": load_export(exported.folder), "onnx_int8": load_export(exported.folder, "int8")}
    files = (exported.folder / "ranker" / "ranker.onnx",)
    runtimes = {"torch": Runtime(exported.models.retrieval, exported.models.ranking, files, exported.asked)}
    runtimes |= {name: Runtime(each.retrieval, each.ranking, files, exported.asked) for name, each in loaded.items()}
    cases = path.workflow.cases(exported.models.retrieval.vocabulary)
    models = {name: (each.retrieval, each.ranking) for name, each in runtimes.items()}
    qualities, measured = qualities_of(models, pairing, cases, path.workflow.dataset.items())
    costs = costs_of(runtimes, pairing, cases.rows[:50], cases.exclude[:50])
    figures = figures_of(costs, qualities)
    assert figures["ndcg@10/torch"] == path.evaluation.figures["ndcg@10/two_tower_ranker"]
    assert figures["ndcg@10/onnx"] == pytest.approx(figures["ndcg@10/torch"], abs=0.005)
    assert qualities["onnx_int8"].loss == measured.evaluation.tests[1].difference
    assert figures["ndcg@10_loss_low/onnx_int8"] <= figures["ndcg@10_loss/onnx_int8"] < 0.1
    assert "ndcg@10_loss/torch" not in figures
    assert figures["overlap@10/torch"] == 1
    assert figures["overlap@10/onnx"] > 0.99
    assert 0.7 < figures["overlap@10/onnx_int8"] <= 1
    assert figures["size_mb/onnx"] == files[0].stat().st_size / 1e6
    assert all(figures[f"{metric}/{name}"] > 0 for metric in ("users_per_s", "p50_ms") for name in runtimes)


def test_overlap_by_hand() -> None:
    expected = np.array([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]])
    found = np.array([[4, 9, 1, 8], [6, 5, 0, 0], [7, 0, 0, 0]])
    assert overlap(expected, found) == pytest.approx((0.5 + 1) / 2)


def test_the_twin_is_what_the_figures_were_measured_with(exported: Exported, path: DonePath) -> None:
    twin, expected = exported.models.retrieval, path.retrieval.model
    np.testing.assert_array_equal(twin.item_vectors_ID, expected.item_vectors_ID)
    uri, card = path.workflow.settings.tracking_uri, exported.models.cards["two-tower"]
    changed = card.model_copy(update={"config": {**card.config, "seed": 77}})
    for other, rows in ((changed, TRAIN_SPLIT), (card, TRAIN_SPLIT.model_copy(update={"before": 9}))):
        with pytest.raises(
            TowerlineError, match=r"no two-tower of variant .* configuration and data that was fitted on"
        ):
            held_out_twin(uri, path.pair, other, rows)
    assert pl.read_parquet(exported.folder / "two-tower" / "catalogue.parquet").height == len(exported.models.items)
