import base64
import html
import io
import re

import matplotlib.image
import numpy as np
import pytest

from cluster.reports import Report, ReportClock
from jobs.report_page import draw_curves, report_page
from tests.pages import Page
from train.evaluation import Evaluation
from train.loop import EpochResult

NASTY = '<script>alert("1")</script> & "quotes" \'x\''


@pytest.fixture
def evaluation() -> Evaluation:
    metrics = {"recall@10": 0.1, "ndcg@10": 0.05, "mrr": 0.03, "coverage@10": 0.5}
    models = ("popularity", NASTY)
    figures = {f"{metric}/{model}": value for model in models for metric, value in metrics.items()}
    return Evaluation(protocol=NASTY, protocol_hash="abc123", users=1234, figures=figures)


@pytest.fixture
def report(evaluation: Evaluation) -> Report:
    return ReportClock(NASTY).finish(
        config={"name": NASTY}, protocol=NASTY, data_version="d" * 64, figures=evaluation.figures
    )


@pytest.fixture
def curves() -> dict[str, list[EpochResult]]:
    def epoch(number: int, metrics: dict[str, float]) -> EpochResult:
        return EpochResult(
            epoch=number, loss=5.0 - number, seconds=1, samples_per_s=1000, data_wait=0.04, metrics=metrics
        )

    return {
        "two-tower": [epoch(number, {"ndcg@10": 0.1 + number / 10}) for number in range(4)],
        "refit": [epoch(number, {}) for number in range(3)],
    }


def test_the_table_is_on_the_page(report: Report, evaluation: Evaluation, curves: dict[str, list[EpochResult]]) -> None:
    page = Page(report_page(report, evaluation, curves, ["an answer"]))
    numbers = ["0.1000", "0.0500", "0.0300", "0.5000"]
    assert page.cells[:5] == ["model", "recall@10", "ndcg@10", "mrr", "coverage@10"]
    assert page.cells[5:10] == ["popularity", *numbers]
    assert page.cells[-4:] == numbers
    assert "1,234 users; protocol abc123" in page.text
    assert "an answer" in page.text


def test_all_text_is_escaped(report: Report, evaluation: Evaluation, curves: dict[str, list[EpochResult]]) -> None:
    """Model names, answers, protocol, configuration and the report's own name."""
    text = report_page(report, evaluation, curves, [NASTY, "</pre><h1>"])
    page = Page(text)
    assert "<script" not in text
    assert page.tags.count("h1") == 1
    assert text.count(html.escape(NASTY)) >= 5
    assert page.text.count(NASTY) >= 5
    assert page.tags.count("pre") == 3


def test_nothing_is_fetched_from_elsewhere(
    report: Report, evaluation: Evaluation, curves: dict[str, list[EpochResult]]
) -> None:
    page = Page(report_page(report, evaluation, curves, []))
    assert not {"script", "link", "iframe"} & set(page.tags)
    (source,) = page.sources
    assert source.startswith("data:image/png;base64,")


def test_the_curves_are_a_picture_that_can_be_read(
    report: Report, evaluation: Evaluation, curves: dict[str, list[EpochResult]]
) -> None:
    text = report_page(report, evaluation, curves, [])
    encoded = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    assert encoded is not None
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded[1], validate=True)), format="png")
    height, width, _ = picture.shape
    assert width > 2 * height > 400
    left, right = picture[:, : width // 2, :3], picture[:, width // 2 :, :3]
    for half in (left, right):
        coloured = np.ptp(half, axis=2) > 0.2
        assert coloured.sum() > 200, "no line is drawn"


def test_the_page_says_how_fast_each_training_was(
    report: Report, evaluation: Evaluation, curves: dict[str, list[EpochResult]]
) -> None:
    page = Page(report_page(report, evaluation, curves, []))
    assert "two-tower: 1,000 examples/s, 4.0% of the time waiting for data" in page.text
    assert "refit: 1,000 examples/s" in page.text


def test_other_curves_are_another_picture(curves: dict[str, list[EpochResult]]) -> None:
    less = {"two-tower": curves["two-tower"][:2]}
    assert draw_curves(less) != draw_curves(curves)


def test_a_training_without_validation_can_be_drawn(
    report: Report, evaluation: Evaluation, curves: dict[str, list[EpochResult]]
) -> None:
    assert "<img" in report_page(report, evaluation, {"refit": curves["refit"]}, [])
