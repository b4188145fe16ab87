"""The notebook about features, cell by cell, on real data and without a cluster."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from cluster.assets import MOVIELENS_100K, fetch
from cluster.provenance import ROOT
from data.ingest.ingestion import ingest_movielens


@pytest.mark.cluster
def test_the_features_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest_movielens(tmp_path, fetch(MOVIELENS_100K), datetime.now(UTC))
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    notebook: Any = nbformat.read(ROOT / "notebooks" / "02_features.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    said = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "How often a user was delighted lately" in said
    assert "item_mean_value_30d" in said
    results = [output["data"]["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert sum("event_time" in result for result in results) == 3
