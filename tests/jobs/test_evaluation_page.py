import base64
import html
import io
import re

import matplotlib.image
import numpy as np
import pytest

from cluster.reports import Report, ReportClock
from jobs.evaluation_page import draw_evaluation, evaluation_page
from tests.train.told import Told, catalogue, told_cases
from train.evaluation import Measurements, measure

NASTY = '<script>alert("1")</script> & "quotes" \'x\''
HISTORIES = {f"u{number}": "ab" for number in range(40)}


@pytest.fixture
def measurements() -> Measurements:
    attributes = {user: [f"name={NASTY}"] for user in HISTORIES}
    cases = told_cases(HISTORIES, dict.fromkeys(HISTORIES, "c"), attributes=attributes)
    mixed = {user: "cd" if number % 3 else "ed" for number, user in enumerate(HISTORIES)}
    return measure({NASTY: Told(mixed), "other": Told(dict.fromkeys(HISTORIES, "gc"))}, cases, catalogue())


@pytest.fixture
def report(measurements: Measurements) -> Report:
    return ReportClock("evaluate_models").finish(
        config={"name": NASTY}, protocol="p", data_version="d" * 64, figures=measurements.evaluation.figures
    )


def test_figures_protocol_and_remarks_are_on_the_page(report: Report, measurements: Measurements) -> None:
    page = evaluation_page(report, measurements, ["no champion: there is none"])
    evaluation = measurements.evaluation
    mean = evaluation.figures[f"ndcg@10/{NASTY}"]
    assert f"{mean:.4f} [" in page
    assert page.count(evaluation.protocol_hash) >= 5
    assert html.escape(evaluation.protocol) in page
    for line in ("no champion: there is none", *evaluation.notes):
        assert f"<li>{html.escape(line)}</li>" in page


def test_names_of_others_are_escaped_and_nothing_is_fetched(report: Report, measurements: Measurements) -> None:
    page = evaluation_page(report, measurements, [NASTY])
    assert "<script" not in page
    assert html.escape(NASTY) in page
    assert re.findall(r'(?:src|href)="(.{15})', page) == ["data:image/png;"]


def test_the_picture_shows_models_and_segments(report: Report, measurements: Measurements) -> None:
    encoded = re.search(r'base64,([^"]+)"', evaluation_page(report, measurements, []))
    assert encoded is not None
    assert base64.b64decode(encoded[1]) == draw_evaluation(measurements)
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded[1])), format="png")[:, :, :3]
    split = picture.shape[1] * 2 // 5
    for half in (picture[:, :split], picture[:, split:]):
        assert (np.ptp(half, axis=2) > 0.2).sum() > 100, "no dot is drawn"
