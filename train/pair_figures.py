"""What the lists of a pair do not tell: whether the ranker's probabilities hold, and how long one user takes."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.stats
import torch

from data.schema import EVENT_TYPE, ITEM_ID, SEQUENCE, USER_ID, VALUE
from train.cases import Cases
from train.evaluation import USERS_AT_ONCE, Measurements
from train.models.ranker_heads import ChosenEvents
from train.models.ranking import RankingModel
from train.pair import RankedRecommender
from train.vocabulary import UNKNOWN, Vocabulary, encode

Values = npt.NDArray[np.float64]
Answers = Mapping[tuple[str, int], tuple[float, int]]
"""(user, item code) of a right answer to the value and the type code of its event."""

CALIBRATION = "calibration_error"
BEFORE = "_before"
"""Ends the name of an error of the probabilities as they were before calibration."""
LATENCY = "latency_p95_ms"
BINS = 10
TIMED_USERS = 200
WARM_UP = 5
SHOWN = 10


def with_pair_figures(measured: Measurements, name: str, figures: Mapping[str, float]) -> Measurements:
    """`measured` with the figures of a pair, which is called `name` there."""
    named = {f"{figure}/{name}": value for figure, value in figures.items()}
    return replace(measured, catalogue={**measured.catalogue, **named})


def prediction_figures(
    pair: RankedRecommender, model: RankingModel, cases: Cases, answers: pl.DataFrame
) -> dict[str, float]:
    """How well the ranker's predictions hold where a right answer is among the candidates; empty if it never is.

    - `calibration_error`: expected calibration error of "the first item is the right one";
    - `like_calibration_error`: that of "the chosen item is liked"; `like_auc`: the chance that of a liked and a not
      liked one the liked one has the higher probability (0.5 knows nothing);
    - `value_rmse`: root mean square error of the value of the chosen item's event.

    The errors exist once more, ending in `_before`, of the probabilities before calibration. What no head has learnt
    has no figure, nor has what all answers have in common an area under a curve.
    """
    events = _events_of(answers, cases.vocabulary)
    parts = list(_told(pair, model, cases, events))
    if not any(len(part.right_T) for part in parts):
        return {}
    told = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Told.__annotations__}
    right_T = told["right_T"]
    figures = {
        CALIBRATION: expected_calibration_error(told["confidence_T"], right_T),
        CALIBRATION + BEFORE: expected_calibration_error(told["confidence_before_T"], right_T),
    }
    liked_T = told["liked_T"]
    if not np.isnan(told["like_T"]).any():
        figures[f"like_{CALIBRATION}"] = expected_calibration_error(told["like_T"], liked_T)
        figures[f"like_{CALIBRATION}{BEFORE}"] = expected_calibration_error(told["like_before_T"], liked_T)
        figures["like_auc"] = area_under_curve(told["like_T"], liked_T)
    if not np.isnan(told["value_T"]).any():
        figures["value_rmse"] = float(np.sqrt(np.mean((told["value_T"] - told["true_value_T"]) ** 2)))
    return {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True)
class Told:
    """T cases with a right answer among the candidates. Of what was not learnt the predictions are not numbers."""

    confidence_T: Values
    """Probability of the candidate that is the most probable."""
    confidence_before_T: Values
    """The same before calibration."""
    right_T: npt.NDArray[np.bool_]
    """Whether it is right."""
    like_T: Values
    """Probability that the right answer is liked."""
    like_before_T: Values
    """The same before calibration."""
    liked_T: npt.NDArray[np.bool_]
    """Whether it was."""
    value_T: Values
    """Expected value of the right answer."""
    true_value_T: Values
    """Its value."""


def _told(pair: RankedRecommender, model: RankingModel, cases: Cases, events: Answers) -> Iterator[Told]:
    for start in range(0, len(cases), USERS_AT_ONCE):
        some = slice(start, start + USERS_AT_ONCE)
        inputs, targets = pair.lists(cases.rows[some], cases.exclude[some]), cases.targets[some]
        codes_BK = inputs.candidates_BK.numpy()
        is_right_BK = np.array(
            [np.isin(row, right) & (row != UNKNOWN) for row, right in zip(codes_BK, targets, strict=True)]
        )
        told = np.flatnonzero(is_right_BK.any(axis=1))
        first = is_right_BK[told].argmax(axis=1)
        users = cases.rows[USER_ID][some].gather(told).to_list()
        chosen = [events[user, code] for user, code in zip(users, codes_BK[told, first].tolist(), strict=True)]
        after, before = (model.predict(inputs[torch.from_numpy(told)], calibrated=fitted) for fitted in (True, False))
        best = after.choice_BK.argmax(axis=1)
        yield Told(
            after.choice_BK.max(axis=1).astype(np.float64),
            before.choice_BK.max(axis=1).astype(np.float64),
            is_right_BK[told, best],
            _at(after.like_BK, first),
            _at(before.like_BK, first),
            _liked(model, chosen),
            _at(after.value_BK, first),
            np.array([value for value, _ in chosen], dtype=np.float64),
        )


def _at(predicted_TK: npt.NDArray[np.float32] | None, place_T: npt.NDArray[np.int64]) -> Values:
    if predicted_TK is None:
        return np.full(len(place_T), np.nan)
    return predicted_TK[np.arange(len(place_T)), place_T].astype(np.float64)


def _liked(model: RankingModel, chosen: list[tuple[float, int]]) -> npt.NDArray[np.bool_]:
    values = torch.tensor([value for value, _ in chosen], dtype=torch.float32)
    types = torch.tensor([kind for _, kind in chosen], dtype=torch.int64)
    return model.network.heads.liked(ChosenEvents(values, types)).bool().numpy()


def _events_of(answers: pl.DataFrame, vocabulary: Vocabulary) -> Answers:
    """The first event of each user with each item."""
    events = answers.sort(SEQUENCE).unique([USER_ID, ITEM_ID], keep="first", maintain_order=True)
    codes = vocabulary.encode_items(events[ITEM_ID]).tolist()
    types = encode(events[EVENT_TYPE].to_arrow(), vocabulary.event_type_codes).tolist()
    keys = zip(events[USER_ID].to_list(), codes, strict=True)
    return dict(zip(keys, zip(events[VALUE].to_list(), types, strict=True), strict=True))


def expected_calibration_error(confidence_N: Values, is_right_N: npt.NDArray[np.bool_]) -> float | None:
    """Mean distance of confidence and share of right answers over `BINS` equally wide bins, weighted by their size.

    Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning" (AAAI 2015). None of nothing.
    """
    if not len(confidence_N):
        return None
    bins_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins_N, confidence_N - is_right_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))


def area_under_curve(score_N: Values, is_true_N: npt.NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, ties by half; None unless both true and false ones are there."""
    true = int(is_true_N.sum())
    false = len(is_true_N) - true
    if not true or not false:
        return None
    ranks_N = scipy.stats.rankdata(score_N)
    return float((ranks_N[is_true_N].sum() - true * (true + 1) / 2) / (true * false))


def latency_p95_ms(pair: RankedRecommender, cases: Cases) -> float:
    """95th percentile of the milliseconds that retrieval and ranking take for one user, over the first of them."""
    asked = [slice(row, row + 1) for row in range(min(TIMED_USERS, len(cases)))]
    spent = []
    for one in (*asked[:WARM_UP], *asked):
        start = time.perf_counter()
        pair.recommend(cases.rows[one], cases.exclude[one], SHOWN)
        spent.append((time.perf_counter() - start) * 1e3)
    return float(np.percentile(spent[len(asked[:WARM_UP]) :], 95))
