"""A replica reads features of the model's own definitions, or says which are there."""

from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.dataset import Dataset
from data.features import feature_fingerprints
from serve.config import AppConfig
from serve.loading import Parts, online_store
from tests.serve.conftest import HISTORY


@pytest.fixture
def elsewhere(settings: Settings, champion: dict[str, str], tmp_path: Path) -> Settings:  # noqa: ARG001
    """The registry with the champion, and no online store."""
    return Settings(home=tmp_path, mlflow_tracking_uri=settings.tracking_uri)


def test_an_empty_store_is_said(elsewhere: Settings) -> None:
    message = r"online store of data set 'shop' is empty; `python -m jobs\.serve_models --dataset shop` publishes"
    with pytest.raises(TowerlineError, match=message):
        _ = Parts(elsewhere, AppConfig(dataset="shop"), "variant-a").store


def test_other_definitions_are_refused_with_both_fingerprints(elsewhere: Settings, shop: Dataset) -> None:
    """Published with a longer history than the model's features carry; then with the model's, beside it."""
    online_store(elsewhere, "shop", HISTORY + 1).publish(shop)
    trained, stored = feature_fingerprints(HISTORY), feature_fingerprints(HISTORY + 1)
    message = (
        rf"two-tower of data set 'shop' was trained on feature view 'user_activity' with fingerprint "
        rf"{trained['user_activity']}, the online store holds {stored['user_activity']}; .*serve_models"
    )
    with pytest.raises(TowerlineError, match=message):
        _ = Parts(elsewhere, AppConfig(dataset="shop"), "variant-a").store
    online_store(elsewhere, "shop", HISTORY).publish(shop)
    store = Parts(elsewhere, AppConfig(dataset="shop"), "variant-a").store
    assert store.published_version() == shop.manifest.data_version
