"""Model versions in MLflow: what is kept of a model, and which pair answers requests.

A registered model holds one folder per version: weights (safetensors), config, vocabulary, and `card.json`, which says
where the model comes from. A two-tower's folder also holds the catalogue and the vectors of its item index. The
two-tower and the ranker that were made for each other carry the same `variant` tag; the alias `champion` names the
pair that serves.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from cluster.errors import TowerlineError
from data.features import feature_fingerprints
from train.evaluation import Evaluation
from train.models.candidate_features import ranker_fingerprints
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.tracking import TrackedRun, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Kind = Literal["two-tower", "ranker"]

CHAMPION = "champion"
CHALLENGER = "challenger"
CARD_FILE = "card.json"
CATALOGUE_FILE = "catalogue.parquet"
INDEX_FILE = "item_vectors.npy"
VARIANT_TAG = "variant"


class ModelCard(BaseModel):
    """Where a model version comes from: enough to train it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    variant: str
    """Shared by the models that were made for each other."""
    dataset: str
    data_version: str
    """SHA-256 of the data set's content."""
    trained_on: str
    """Which of its events, in words."""
    config: dict[str, Any]
    """Resolved configuration, seeds included."""
    scaling: dict[str, Any]
    """Workers and what connected them."""
    history_length: int
    """Events of a user's history that the features carry."""
    feature_fingerprints: dict[str, str]
    """Feature view to the hash of its definition."""
    evaluation: Evaluation | None
    """How the model did; of a refitted one, how the same configuration did on held-out events."""
    curve: list[dict[str, float]]
    """One entry per epoch."""
    best_epoch: int
    """The epoch whose weights were kept, from 0."""
    git_commit: str
    versions: dict[str, str]
    """Of the libraries."""


@dataclass(frozen=True)
class LoadedModels:
    """The pair that serves, as one."""

    variant: str
    retrieval: RetrievalModel
    ranking: RankingModel
    items: pl.DataFrame
    """The catalogue: item_id, title, attributes."""
    cards: Mapping[Kind, ModelCard]
    versions: Mapping[Kind, str]
    """Registry version of each model."""


def registered_name(dataset: str, kind: Kind) -> str:
    """Name of the registered model."""
    return f"{dataset}-{kind}"


def register_retrieval(
    run: TrackedRun, model: RetrievalModel, card: ModelCard, items: pl.DataFrame, alias: str | None = None
) -> str:
    """Log the two-tower with its catalogue and index under `run`; returns the new version."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        items.write_parquet(Path(folder) / CATALOGUE_FILE)
        np.save(Path(folder) / INDEX_FILE, model.item_vectors_ID)
        return _register(run, Path(folder), card, alias)


def register_ranking(run: TrackedRun, model: RankingModel, card: ModelCard, alias: str | None = None) -> str:
    """Log the ranker under `run`; returns the new version."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        return _register(run, Path(folder), card, alias)


def promote(tracking_uri: str, dataset: str, versions: Mapping[Kind, str]) -> None:
    """Point the alias `champion` at a pair of versions."""
    client = connect(tracking_uri)
    for kind, version in versions.items():
        client.set_registered_model_alias(registered_name(dataset, kind), CHAMPION, version)


def load_champion(tracking_uri: str, dataset: str) -> LoadedModels:
    """The pair that serves.

    Raises:
        TowerlineError: there is no champion, its two models were not made for each other, or they were trained on
            features that this code no longer computes.
    """
    pair = _champion(tracking_uri, dataset)
    folders = {kind: _download(version.source, tracking_uri) for kind, version in pair.items()}
    cards = {kind: _read_card(folder / CARD_FILE) for kind, folder in folders.items()}
    for card in cards.values():
        _require_same_features(card)
    return LoadedModels(
        variant=cards["two-tower"].variant,
        retrieval=RetrievalModel.load(folders["two-tower"], np.load(folders["two-tower"] / INDEX_FILE)),
        ranking=RankingModel.load(folders["ranker"]),
        items=pl.read_parquet(folders["two-tower"] / CATALOGUE_FILE),
        cards=cards,
        versions={kind: str(version.version) for kind, version in pair.items()},
    )


def champion_cards(tracking_uri: str, dataset: str) -> dict[Kind, ModelCard]:
    """The cards of the pair that serves, without the models. Raises TowerlineError where `load_champion` does."""
    cards = {
        kind: _read_card(_download(f"{version.source}/{CARD_FILE}", tracking_uri))
        for kind, version in _champion(tracking_uri, dataset).items()
    }
    for card in cards.values():
        _require_same_features(card)
    return cards


def load_challenger(tracking_uri: str, dataset: str) -> tuple[RetrievalModel, ModelCard]:
    """The two-tower that `train_retrieval` registered last.

    Raises:
        TowerlineError: there is none, or it was trained on features that this code no longer computes.
    """
    client = connect(tracking_uri)
    version = _aliased(client, tracking_uri, dataset, "two-tower", CHALLENGER)
    folder = _download(version.source, tracking_uri)
    card = _read_card(folder / CARD_FILE)
    _require_same_features(card)
    return RetrievalModel.load(folder), card


def require_stored_features(card: ModelCard, stored: Mapping[str, str]) -> None:
    """Raise TowerlineError, naming both, unless an online store holds the feature views that a model was trained on.

    `stored`: view to fingerprint, nothing if the store is empty.
    """
    how = f"`python -m jobs.serve_models --dataset {card.dataset}` publishes the data set with them"
    if not stored:
        raise TowerlineError(f"the online store of data set {card.dataset!r} is empty; {how}")
    for view in feature_fingerprints(card.history_length):
        if stored.get(view) != card.feature_fingerprints.get(view):
            raise TowerlineError(f"{_trained_on(card, view)}, the online store holds {stored.get(view)}; {how}")


def curve_of(history: Sequence[BaseModel]) -> list[dict[str, float]]:
    """The epochs of a training as flat numbers."""
    rows = [epoch.model_dump() for epoch in history]
    return [{**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]} for row in rows]


def _register(run: TrackedRun, folder: Path, card: ModelCard, alias: str | None) -> str:
    from mlflow.exceptions import MlflowException

    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2), encoding="utf-8")
    run.client.log_artifacts(run.run_id, str(folder), card.kind)
    name = registered_name(card.dataset, card.kind)
    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {VARIANT_TAG: card.variant, "data_version": card.data_version, "git_commit": card.git_commit}
    source = f"{run.client.get_run(run.run_id).info.artifact_uri}/{card.kind}"
    version = str(run.client.create_model_version(name, source, run.run_id, tags=tags).version)
    if alias is not None:
        run.client.set_registered_model_alias(name, alias, version)
    return version


def _champion(tracking_uri: str, dataset: str) -> dict[Kind, "ModelVersion"]:
    """The two versions with the alias `champion`. Raises TowerlineError unless they are of one variant."""
    client = connect(tracking_uri)
    two_tower = _aliased(client, tracking_uri, dataset, "two-tower", CHAMPION)
    ranker = _aliased(client, tracking_uri, dataset, "ranker", CHAMPION)
    variant = two_tower.tags[VARIANT_TAG]
    if ranker.tags[VARIANT_TAG] != variant:
        raise TowerlineError(
            f"data set {dataset!r}: champion two-tower {two_tower.version} is of variant {variant}, champion ranker "
            f"{ranker.version} of variant {ranker.tags[VARIANT_TAG]}; give the alias to a pair of one variant"
        )
    return {"two-tower": two_tower, "ranker": ranker}


def _aliased(client: "MlflowClient", tracking_uri: str, dataset: str, kind: Kind, alias: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    name = registered_name(dataset, kind)
    job = "train_ranking" if alias == CHAMPION else "train_retrieval"
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TowerlineError(
            f"the registry at {tracking_uri} has no {alias} of model {name!r}; "
            f"train one with `python -m jobs.{job} --dataset {dataset}`"
        ) from error


def _download(source: str | None, tracking_uri: str) -> Path:
    """The folder or file behind an artifact's address, on this machine."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=source, tracking_uri=tracking_uri))


def _read_card(path: Path) -> ModelCard:
    return ModelCard.model_validate_json(path.read_bytes())


def _require_same_features(card: ModelCard) -> None:
    current = feature_fingerprints(card.history_length) | ranker_fingerprints()
    for view, fingerprint in card.feature_fingerprints.items():
        if current.get(view) != fingerprint:
            raise TowerlineError(
                f"{_trained_on(card, view)}, this code computes {current.get(view)}; train again, or serve with the "
                f"code of commit {card.git_commit}"
            )


def _trained_on(card: ModelCard, view: str) -> str:
    return (
        f"the {card.kind} of data set {card.dataset!r} was trained on feature view {view!r} with fingerprint "
        f"{card.feature_fingerprints.get(view)}"
    )
