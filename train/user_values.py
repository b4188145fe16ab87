"""The values that figures are means of, one row per question and model: for intervals, segments and paired tests.

    user_id, protocol_hash, model, segments, and a column per metric; `ndcg@10/head` counts right answers of the head

They lie in a Parquet file beside the report that gives their means.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cluster.errors import TowerlineError
from cluster.reports import Report
from data.schema import USER_ID
from train.bootstrap import RESAMPLES, PairedTest, paired_bootstrap, randomisation_test

PROTOCOL_HASH = "protocol_hash"
MODEL = "model"
SEGMENTS = "segments"
KEYS = (USER_ID, PROTOCOL_HASH, MODEL, SEGMENTS)


def metrics_in(values: pl.DataFrame) -> list[str]:
    """Names of the metrics, in order."""
    return [name for name in values.columns if name not in KEYS]


def models_in(values: pl.DataFrame) -> list[str]:
    """Names of the models, in order."""
    return values[MODEL].unique(maintain_order=True).to_list()


def averaged(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The values of several runs of the same models (seeds), averaged per question.

    Questions of several protocols stay apart, so that those of several cut-offs can be tested together.
    """
    together = pl.concat(frames)
    keys = [USER_ID, PROTOCOL_HASH, MODEL]
    means = [pl.col(name).mean() for name in metrics_in(together)]
    return together.group_by(keys, maintain_order=True).agg(pl.col(SEGMENTS).first(), *means)


def paired_test(
    values: pl.DataFrame, a: str, b: str, metric: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedTest:
    """Whether models `a` and `b` differ in `metric` on the same questions, drawn by user.

    Raises:
        TowerlineError: a model or the metric is not there, or the two were not asked the same questions.
    """
    columns = [_values_of(values, model, metric) for model in (a, b)]
    keys = [USER_ID, PROTOCOL_HASH]
    both = columns[0].join(columns[1], on=keys, suffix="_b", maintain_order="left")
    if not both.height == columns[0].height == columns[1].height:
        hashes = [", ".join(column[PROTOCOL_HASH].unique().sort()) for column in columns]
        raise TowerlineError(
            f"{a!r} and {b!r} were not asked the same questions: {columns[0].height} by protocol {hashes[0]} and "
            f"{columns[1].height} by protocol {hashes[1]}, of which {both.height} are the same; measure both together"
        )
    answered = both.drop_nans([metric, f"{metric}_b"])
    of_a, of_b = (answered[name].to_numpy() for name in (metric, f"{metric}_b"))
    users = answered[USER_ID]
    return PairedTest(
        metric=metric,
        a=a,
        b=b,
        difference=paired_bootstrap(of_a, of_b, users, seed=seed, resamples=resamples),
        p_value=randomisation_test(of_a - of_b, users, seed=seed, resamples=resamples),
        users=users.n_unique(),
    )


def write_user_values(values: pl.DataFrame, home: Path, report: Report) -> Path:
    """Write the file of the last run and the one by time, as `Report.write` does; returns the former."""
    folder = home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / f"{report.name}-{report.started:%Y%m%dT%H%M%S}.parquet", folder / f"{report.name}.parquet"):
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            values.write_parquet(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return folder / f"{report.name}.parquet"


def read_user_values(path: Path) -> pl.DataFrame:
    """Read what `write_user_values` wrote.

    Raises:
        TowerlineError: the file is not there, is cut short or holds something else.
    """
    try:
        values = pl.read_parquet(path)
    except (OSError, pl.exceptions.ComputeError) as error:
        raise TowerlineError(f"{path} cannot be read ({error}); run `python -m jobs.evaluate_models` again") from error
    if missing := [name for name in KEYS if name not in values.columns]:
        raise TowerlineError(f"{path} holds no values by user: it has no column {missing[0]!r}")
    return values


def _values_of(values: pl.DataFrame, model: str, metric: str) -> pl.DataFrame:
    for name, known in ((model, models_in(values)), (metric, metrics_in(values))):
        if name not in known:
            raise TowerlineError(f"there are no values of {name!r} (there are: {', '.join(known)})")
    chosen = values.filter(pl.col(MODEL) == model).select(USER_ID, PROTOCOL_HASH, metric)
    if chosen.select(USER_ID, PROTOCOL_HASH).is_duplicated().any():
        raise TowerlineError(f"{model!r} has several values for the same question; average its runs first")
    return chosen
