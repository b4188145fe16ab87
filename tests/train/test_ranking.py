"""The ranker's training lists, forward in time."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.offline.store import read_examples
from data.splits import TRAIN, VALIDATION
from tests.train.planted import Planted, batches
from train.candidates import ItemFeatures, find_candidates
from train.histories import Histories
from train.models.candidate_features import CANDIDATE_FEATURES
from train.models.ease import EASEConfig
from train.models.ensemble import Ensemble, EnsembleConfig
from train.models.ranker import RankerConfig, RankerInputs, RankingBatch
from train.models.ranker_heads import HeadsConfig
from train.models.ranking import RankingModel, ranker_inputs
from train.models.retrieval import RetrievalModel
from train.ranking import (
    RankingConfig,
    RankingTask,
    RankingTaskConfig,
    calibrate,
    moment_t1,
    ranking_task,
    with_sources,
)
from train.ranking_lists import read_lists
from train.vocabulary import UNKNOWN, Vocabulary

CONFIG = RankingConfig.model_validate(
    {
        "num_candidates": 12,
        "batch_size": 10,
        "past_share": 0.7,
        "seed": 3,
        "ranker": {"dropout": 0.0},
        "sources": [{"kind": "item_item"}, {"kind": "ease"}, {"kind": "ials"}],
    }
)


@pytest.fixture(scope="module")
def examples(planted: Planted) -> pl.DataFrame:
    return read_examples(planted.folder)


@pytest.fixture
def past_model(random_retrieval: RetrievalModel) -> RetrievalModel:
    """A model that is not the other one."""
    weights = {
        name: -weight if name == "item.weight" else weight
        for name, weight in random_retrieval.network.state_dict().items()
    }
    return RetrievalModel(random_retrieval.config, random_retrieval.vocabulary, weights, random_retrieval.covisitation)


@pytest.fixture
def written(
    planted: Planted,
    examples: pl.DataFrame,
    past_model: RetrievalModel,
    random_retrieval: RetrievalModel,
    tmp_path: Path,
) -> RankingTaskConfig:
    return ranking_task(
        planted.dataset,
        examples,
        CONFIG,
        past_retrieval=past_model,
        retrieval=random_retrieval,
        folder=tmp_path / "lists",
    )


def test_t1_leaves_the_asked_share_of_the_training_events_before_it(examples: pl.DataFrame) -> None:
    train = examples.filter(pl.col("split") == TRAIN)["sequence"]
    for share in (0.2, 0.8):
        before = (train < moment_t1(examples, share)).sum()
        assert before == int(train.len() * share)
    assert moment_t1(examples, 0.8) in train.to_list()


def _expected(
    planted: Planted, examples: pl.DataFrame, model: RetrievalModel, rows: pl.DataFrame, *, keep_all: bool
) -> list[tuple[RankerInputs, int, float]]:
    """The lists, the places of the chosen items and their values, by definition, a row at a time."""
    items = ItemFeatures(planted.dataset.events(), model.vocabulary)
    found = find_candidates(model, rows, Histories(examples, model.vocabulary), items, 12)
    expected = []
    for row, codes in enumerate(found.codes_BK.tolist()):
        one = slice(row, row + 1)
        target = model.vocabulary.item_code(rows["item_id"][row])
        if target in codes or keep_all:
            lists = (found.codes_BK[one], found.scores_BK[one], found.item_features_BKF[one])
            place = codes.index(target) if target in codes else -1
            expected.append((ranker_inputs(rows[one], *lists, model), place, rows["value"][row]))
    return expected


@pytest.mark.parametrize("kind", [TRAIN, VALIDATION])
def test_lists_are_those_of_their_moment_and_of_the_right_model(
    written: RankingTaskConfig,
    planted: Planted,
    past_model: RetrievalModel,
    random_retrieval: RetrievalModel,
    kind: str,
) -> None:
    """Training lists: events at or after T1, offered by the past model. Validation lists: by the model of all."""
    examples = read_examples(planted.folder)
    rows = examples.filter(pl.col("split") == kind)
    if kind == TRAIN:
        rows = rows.filter(pl.col("sequence") >= moment_t1(examples, 0.7))
        assert rows["sequence"].min() == moment_t1(examples, 0.7)
    model = past_model if kind == TRAIN else random_retrieval
    fitted_on = pl.col("split") == TRAIN
    if kind == TRAIN:
        fitted_on &= pl.col("sequence") < moment_t1(examples, 0.7)
    model = with_sources(model, CONFIG, examples.filter(fitted_on))
    expected = _expected(planted, examples, model, rows, keep_all=kind == VALIDATION)
    lists = read_lists(written.lists / f"{kind}.safetensors")
    assert 20 < len(expected) < rows.height + (kind == VALIDATION)
    assert lists.positive_B.tolist() == [place for _, place, _ in expected]
    assert lists.chosen.value_B.tolist() == [value for *_, value in expected]
    assert set(lists.chosen.type_B.tolist()) == {model.vocabulary.event_type_codes["view"]}
    np.testing.assert_array_equal(lists.inputs.item_directions_ID.numpy(), model.item_directions_ID)
    for name in ("user_features_BF", "candidates_BK", "candidate_features_BKF"):
        column = torch.cat([getattr(inputs, name) for inputs, *_ in expected])
        torch.testing.assert_close(getattr(lists.inputs, name), column, rtol=1e-4, atol=1e-4)
    for name in vars(lists.inputs.users):
        column = torch.cat([getattr(inputs.users, name) for inputs, *_ in expected])
        assert torch.equal(getattr(lists.inputs.users, name), column)


def test_a_like_by_type_needs_the_types_of_the_events(
    planted: Planted, examples: pl.DataFrame, random_retrieval: RetrievalModel, tmp_path: Path
) -> None:
    """A data set without the validation events, as when it stands for what may be known."""
    train = examples.filter(pl.col("split") == TRAIN)["source_row"]
    known = OfEvents(
        **vars(planted.dataset), known=planted.dataset.events().filter(pl.col("source_row").is_in(train.to_list()))
    )
    by_type = CONFIG.model_copy(
        update={"ranker": RankerConfig(heads=HeadsConfig(learn=("value",), like_event_types=("view",)))}
    )
    with pytest.raises(TowerlineError, match=r"validation: the type of \d+ events is not known.*like_min_value"):
        ranking_task(
            known,
            examples,
            by_type,
            past_retrieval=random_retrieval,
            retrieval=random_retrieval,
            folder=tmp_path,
        )


@dataclass(frozen=True)
class OfEvents(Dataset):
    """A data set with other events."""

    known: pl.DataFrame

    def events(self) -> pl.DataFrame:
        return self.known


def test_no_source_has_seen_what_it_is_asked_about(
    planted: Planted,
    examples: pl.DataFrame,
    random_retrieval: RetrievalModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training lists: sources of the training events before T1. Validation lists: of the training events."""
    fitted: list[pl.DataFrame] = []
    fit = Ensemble.fit

    def told(config: EnsembleConfig, events: pl.DataFrame, vocabulary: Vocabulary) -> Ensemble:
        fitted.append(events)
        return fit(config, events, vocabulary)

    monkeypatch.setattr(Ensemble, "fit", told)
    both = {"past_retrieval": random_retrieval, "retrieval": random_retrieval}
    ranking_task(planted.dataset, examples, CONFIG, folder=tmp_path, **both)
    train = examples.filter(pl.col("split") == TRAIN)["sequence"].sort()
    of_past, of_train = (events["sequence"] for events in fitted)
    assert of_past.to_list() == train.filter(train < moment_t1(examples, 0.7)).to_list()
    assert of_train.to_list() == train.to_list()


def test_what_happens_from_t1_on_changes_no_source_of_the_training_lists(
    planted: Planted, examples: pl.DataFrame, random_retrieval: RetrievalModel, tmp_path: Path
) -> None:
    """Others chose other items then; the candidates of those who did as before are scored as before."""
    after_t1 = pl.col("sequence") >= moment_t1(examples, 0.7)
    others = after_t1 & (pl.col("source_row") % 2 == 0)
    changed = examples.with_columns(pl.when(others).then(pl.col("item_id").reverse()).otherwise(pl.col("item_id")))
    assert (changed["item_id"] != examples["item_id"]).sum() > 100
    both = {"past_retrieval": random_retrieval, "retrieval": random_retrieval}
    lists = []
    for name, each in (("before", examples), ("after", changed)):
        ranking_task(planted.dataset, each, CONFIG, folder=tmp_path / name, **both)
        written = read_lists(tmp_path / name / "train.safetensors")
        opinions = written.inputs.candidate_features_BKF[:, :, len(CANDIDATE_FEATURES) :: 2]
        scored = (written.inputs.candidates_BK.tolist(), opinions.tolist(), written.row_ids_B.tolist())
        lists.append({row: (codes, scores) for codes, scores, row in zip(*scored, strict=True)})
    same = [row for row in lists[0] if row in lists[1] and lists[0][row][0] == lists[1][row][0]]
    assert len(same) > 20
    assert all(lists[0][row] == lists[1][row] for row in same)


def test_a_catalogue_too_large_for_ease_is_refused(
    planted: Planted, examples: pl.DataFrame, random_retrieval: RetrievalModel, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"sources": (EASEConfig(memory_limit_gib=1e-6),)})
    both = {"past_retrieval": random_retrieval, "retrieval": random_retrieval}
    with pytest.raises(TowerlineError, match=r"EASE needs .* for 62 items, memory_limit_gib .*use item_item or ials"):
        ranking_task(planted.dataset, examples, config, folder=tmp_path, **both)


def test_a_source_is_named_once_and_exists() -> None:
    with pytest.raises(ValueError, match="sources names ease more than once; keep one of each kind"):
        RankingConfig.model_validate({"sources": [{"kind": "ease"}, {"kind": "ease", "regularization": 9}]})
    with pytest.raises(ValueError, match=r"'nearest' .*expected tags: 'popularity', 'item_item', 'ease', 'ials'"):
        RankingConfig.model_validate({"sources": [{"kind": "nearest"}]})
    with pytest.raises(ValueError, match=r"candidates\.blend"):
        RankingConfig.model_validate({"candidates": {"blend": "sum"}})


def test_the_training_item_is_where_the_list_says(written: RankingTaskConfig) -> None:
    task = RankingTask(written)
    codes_B = task._lists.inputs.candidates_BK.gather(1, task._lists.positive_B.unsqueeze(1))
    assert (codes_B != UNKNOWN).all()
    assert (task._lists.positive_B >= 0).all()
    assert (task.model.item_seen_I1[codes_B.flatten()] == 1).all()
    assert task.model.item_seen_I1.sum() == len(set(codes_B.flatten().tolist()))


def test_an_untrained_ranker_validates_as_retrieval_does(written: RankingTaskConfig) -> None:
    """One whose item is not in the list counts as zero."""
    task = RankingTask(written)
    places = task._validation.positive_B.numpy()
    assert (places < 0).any()
    gains = np.where((places >= 0) & (places < 10), 1 / np.log2(2 + np.maximum(places, 0)), 0)
    assert task.validate()["ndcg@10"] == pytest.approx(gains.mean())


def test_no_list_with_the_chosen_item_is_an_error_that_says_what_to_do(
    planted: Planted, examples: pl.DataFrame, random_retrieval: RetrievalModel, tmp_path: Path
) -> None:
    repeats = examples.with_columns(pl.col("item_id").first().over("user_id"))
    after = repeats.filter(pl.col("sequence") != pl.col("sequence").min().over("user_id"))
    with pytest.raises(
        TowerlineError, match=r"train: retrieval offered no event's item among 12 candidates; .*num_candidates"
    ):
        ranking_task(
            planted.dataset,
            pl.concat(
                [
                    after,
                    repeats.filter(pl.col("sequence") == pl.col("sequence").min().over("user_id")).with_columns(
                        pl.lit("other").alias("split")
                    ),
                ]
            ),
            CONFIG,
            past_retrieval=random_retrieval,
            retrieval=random_retrieval,
            folder=tmp_path,
        )


def _seen(batches: list[RankingBatch]) -> list[tuple[float, ...]]:
    return [
        (float(place), *codes.tolist(), *features.tolist())
        for batch in batches
        for place, codes, features in zip(
            batch.positive_B, batch.inputs.candidates_BK, batch.inputs.user_features_BF, strict=True
        )
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_list_is_seen_once_per_epoch(written: RankingTaskConfig, size: int) -> None:
    task = RankingTask(written)
    shares = [list(batches(task, 1, rank, size)) for rank in range(size)]
    whole = RankingBatch(task._lists.inputs, task._lists.positive_B, 1.0)
    assert sorted(row for share in shares for row in _seen(share)) == sorted(_seen([whole]))
    for step in zip(*shares, strict=True):
        count = sum(len(batch.positive_B) for batch in step)
        assert count <= 10
        assert all(batch.scale == size / count for batch in step)
    alone = [_seen([batch]) for batch in batches(task, 1, 0, 1)]
    assert [_seen(list(step)) for step in zip(*shares, strict=True)] == alone
    assert _seen(list(batches(task, 2, 0, 1))) != _seen(list(batches(task, 1, 0, 1)))


@pytest.mark.parametrize("loss", ["listwise_softmax", "pointwise_logistic"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_over_ranks_is_the_loss_and_the_gradient_of_one_process(
    written: RankingTaskConfig, size: int, loss: Literal["listwise_softmax", "pointwise_logistic"]
) -> None:
    """With attention and both heads."""
    ranker = RankerConfig(dropout=0, history_heads=2, loss=loss, heads=HeadsConfig(learn=("like", "value")))
    task = RankingTask(replace(written, config=CONFIG.model_copy(update={"ranker": ranker})))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))

    def loss_and_gradients(batch: RankingBatch) -> tuple[float, dict[str, Tensor]]:
        task.model.zero_grad()
        loss = task.model(batch)
        loss.backward()
        weights = task.model.named_parameters()
        return loss.item(), {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}

    alone, gradients = loss_and_gradients(next(batches(task, 0, 0, 1)))
    ranks = [loss_and_gradients(next(batches(task, 0, rank, size))) for rank in range(size)]
    assert len(gradients) == len(list(task.model.parameters()))
    assert np.mean([loss for loss, _ in ranks]) == pytest.approx(alone, rel=1e-5)
    for name, gradient in gradients.items():
        mean = torch.stack([rank_gradients[name] for _, rank_gradients in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_calibration_is_fitted_on_the_lists_that_hold_the_chosen_item(written: RankingTaskConfig) -> None:
    """It makes the chosen items and the likes of these lists more probable, and changes no order."""
    task = RankingTask(written)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model = RankingModel(written.config.ranker, written.vocabulary, task.model.state_dict())
    lists = read_lists(written.lists / "validation.safetensors")
    told = lists[torch.nonzero(lists.positive_B >= 0).squeeze(1)]
    assert 0 < len(told) < len(lists)

    def log_losses(calibrated: bool) -> tuple[float, float]:
        found = model.predict(told.inputs, calibrated=calibrated)
        places = np.arange(len(told)), told.positive_B.numpy()
        assert found.like_BK is not None
        like_B, liked_B = found.like_BK[places], model.network.heads.liked(told.chosen).bool().numpy()
        return -np.log(found.choice_BK[places]).mean(), -np.log(np.where(liked_B, like_B, 1 - like_B)).mean()

    order_BK = model.network.score(lists.inputs).argsort(dim=1)
    before = log_losses(calibrated=False)
    calibrate(model, lists)
    after = log_losses(calibrated=True)
    assert log_losses(calibrated=False) == before
    assert after[0] < before[0] - 1e-3
    assert after[1] < before[1] - 1e-3
    assert torch.equal(model.network.score(lists.inputs).argsort(dim=1), order_BK)
