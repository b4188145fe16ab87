from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.ingest.request import IngestionRequest
from tests.data.ingesting import events_file

COLUMNS = ["user_id=who", "item_id=what", "event_time=when"]


def test_what_is_asked_for_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "days" / "date=2024-01-01").mkdir(parents=True)
    events_file(tmp_path / "days" / "date=2024-01-01")
    asked = {"dataset": "shop", "events": str(tmp_path / "days"), "columns": COLUMNS, "time_unit": "s"}
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(TowerlineError, match=r"date=2024-01-02 of date=2024-01-01\.\.2024-01-02 is missing"):
        IngestionRequest(**asked, partitions="date=2024-01-01..2024-01-02").fulfil(settings)
    with pytest.raises(TowerlineError, match="--item-attributes kind: there is no file for them"):
        IngestionRequest(**asked, item_attributes=["kind"]).fulfil(settings)
    with pytest.raises(ValidationError, match="time_units"):
        IngestionRequest(**asked, time_units="ms")


def test_what_is_shown_holds_no_secret() -> None:
    request = IngestionRequest(dataset="shop", events="s3://key:secret@shop/events?region=x", append=True)
    shown = request.shown()
    assert shown["events"] == "s3://shop/events"
    assert shown["append"] is True
