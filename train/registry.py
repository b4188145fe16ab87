"""Model versions in MLflow: what is kept of a model, and which pair answers requests.

A registered model holds one folder per version: weights (safetensors), config, vocabulary, `card.json`, which says
where the model comes from, and `contents.json`, the digest of each file. A two-tower's folder also holds the catalogue,
the vectors of its item index and the sources that the ranker reads beside it. The two-tower and the ranker that were
made for each other carry the same `variant` tag; the ledger (`train.ledger`) says which variant serves.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from cluster.errors import TowerlineError
from data.schema import ITEM_ID
from train.card import CARD_FILE, KINDS, Kind, ModelCard, read_card
from train.ledger import CHAMPION, read_ledger, versions_of
from train.models.ensemble import EnsembleConfig
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.tracking import TrackedRun, connect
from train.vocabulary import require_same_codes

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
CONTENTS_FILE = "contents.json"
CATALOGUE_FILE = "catalogue.parquet"
USER_VALUES_FILE = "user_values.parquet"
INDEX_FILE = "item_vectors.npy"
VARIANT_TAG = "variant"
UNREADABLE = (RuntimeError, ValueError, TypeError, KeyError, OSError)
"""What reading a model raises. The files are those that were registered, so it is the code that has changed."""


@dataclass(frozen=True)
class RegisteredPair:
    """A variant in the registry: the two models that were made for each other."""

    dataset: str
    variant: str
    models: "Mapping[Kind, ModelVersion]"

    @property
    def versions(self) -> dict[Kind, str]:
        """Registry version of each model."""
        return {kind: str(version.version) for kind, version in self.models.items()}


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

    def with_items(self, items: pl.DataFrame) -> "LoadedModels":
        """The same pair with these items after those that it was trained with (`RetrievalModel.with_items`)."""
        if items.is_empty():
            return self
        known = self.items.join(items, on=ITEM_ID, how="anti")
        return replace(
            self,
            retrieval=self.retrieval.with_items(items),
            ranking=self.ranking.with_items(items),
            items=pl.concat([known, items.select(known.columns)]),
        )


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


def register_ranking(run: TrackedRun, model: RankingModel, card: ModelCard, values: pl.DataFrame) -> str:
    """Log the ranker under `run`, with the values by user (`train.user_values`) that the pair is judged by.

    Returns the new version.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        values.write_parquet(Path(folder) / USER_VALUES_FILE)
        return _register(run, Path(folder), card, alias=None)


def registered_pairs(tracking_uri: str, dataset: str) -> list[RegisteredPair]:
    """Every variant of which both models are registered, the newest first."""
    client = connect(tracking_uri)
    found: dict[str, dict[Kind, ModelVersion]] = {}
    for kind in KINDS:
        for version in versions_of(client, registered_name(dataset, kind)):
            found.setdefault(version.tags[VARIANT_TAG], {})[kind] = version
    pairs = [RegisteredPair(dataset, variant, models) for variant, models in found.items() if len(models) == len(KINDS)]
    return sorted(pairs, key=lambda pair: int(pair.models["two-tower"].version), reverse=True)


def newest_pair(tracking_uri: str, dataset: str) -> RegisteredPair:
    """The variant that was registered last. Raises TowerlineError if there is none."""
    pairs = registered_pairs(tracking_uri, dataset)
    if not pairs:
        raise TowerlineError(
            f"the registry at {tracking_uri} has no variant of data set {dataset!r}; "
            f"`python -m jobs.train_ranking --dataset {dataset}` registers one"
        )
    return pairs[0]


def find_pair(tracking_uri: str, dataset: str, name: str) -> RegisteredPair:
    """The variant of this name, of which the beginning is enough. Raises TowerlineError unless it is exactly one."""
    pairs = registered_pairs(tracking_uri, dataset)
    found = [pair for pair in pairs if name and pair.variant.startswith(name)]
    if len(found) != 1:
        listed = ", ".join(pair.variant for pair in (found or pairs)) or "none"
        raise TowerlineError(
            f"{len(found) or 'no'} registered variants of data set {dataset!r} begin with {name!r}, expected one of: "
            f"{listed}; `python -m jobs.train_ranking --dataset {dataset}` registers one"
        )
    return found[0]


def load_champion(tracking_uri: str, dataset: str) -> LoadedModels:
    """The pair that serves. Raises TowerlineError if there is no champion, or where `load_pair` does."""
    return load_pair(tracking_uri, champion_pair(tracking_uri, dataset))


def champion_cards(tracking_uri: str, dataset: str) -> dict[Kind, ModelCard]:
    """The cards of the pair that serves, without the models. Raises TowerlineError where `load_champion` does."""
    return read_cards(tracking_uri, champion_pair(tracking_uri, dataset))


def champion_pair(tracking_uri: str, dataset: str) -> RegisteredPair:
    """The pair that the ledger names. Raises TowerlineError if there is none."""
    champion = read_ledger(tracking_uri, dataset).champion
    if champion is None:
        registered = registered_pairs(tracking_uri, dataset)
        job = f"promote_model --dataset {dataset}" if registered else f"train_ranking --dataset {dataset}"
        how = f"{len(registered)} variants wait to be promoted" if registered else "train one"
        raise TowerlineError(
            f"the registry at {tracking_uri} has no champion of data set {dataset!r}; {how} with `python -m jobs.{job}`"
        )
    return find_pair(tracking_uri, dataset, champion)


def load_pair(tracking_uri: str, pair: RegisteredPair) -> LoadedModels:
    """The models of a variant.

    Raises:
        TowerlineError: an artifact is missing, cut short or altered, they were trained on features that this code no
            longer computes, or the two know other items.
    """
    with _artifacts(tracking_uri, pair) as folders:
        cards = {kind: read_card(folder) for kind, folder in folders.items()}
        try:
            retrieval = RetrievalModel.load(folders["two-tower"], np.load(folders["two-tower"] / INDEX_FILE))
            ranking = RankingModel.load(folders["ranker"])
            items = pl.read_parquet(folders["two-tower"] / CATALOGUE_FILE)
        except UNREADABLE as error:
            what = f"variant {pair.variant} of data set {pair.dataset!r}"
            raise _of_other_code(what, cards["two-tower"], error) from error
        _require_sources(pair, cards["ranker"], retrieval.ensemble.config)
    name = f"the ranker of variant {pair.variant} of data set {pair.dataset!r}"
    require_same_codes(name, ranking.vocabulary, "its two-tower", retrieval.vocabulary)
    return LoadedModels(pair.variant, retrieval, ranking, items, cards, pair.versions)


def read_cards(tracking_uri: str, pair: RegisteredPair) -> dict[Kind, ModelCard]:
    """The cards of a variant, of which all artifacts were looked at. Raises TowerlineError where `load_pair` does."""
    return read_evaluated(tracking_uri, pair)[0]


def read_evaluated(tracking_uri: str, pair: RegisteredPair) -> tuple[dict[Kind, ModelCard], pl.DataFrame]:
    """The cards, and the values by user that their evaluation is made from. Raises TowerlineError as `load_pair`."""
    with _artifacts(tracking_uri, pair) as folders:
        cards = {kind: read_card(folder) for kind, folder in folders.items()}
        return cards, pl.read_parquet(folders["ranker"] / USER_VALUES_FILE)


def load_challenger(tracking_uri: str, dataset: str) -> tuple[RetrievalModel, ModelCard]:
    """The two-tower that `train_retrieval` registered last.

    Raises:
        TowerlineError: there is none, or where `load_pair` does.
    """
    return load_two_tower_version(tracking_uri, dataset, _challenger(tracking_uri, dataset))


def load_two_tower_version(
    tracking_uri: str, dataset: str, version: "ModelVersion"
) -> tuple[RetrievalModel, ModelCard]:
    """Any registered two-tower of a data set. Raises TowerlineError where `load_pair` does."""
    with _artifact(version, dataset, tracking_uri) as folder:
        card = read_card(folder)
        try:
            return RetrievalModel.load(folder), card
        except UNREADABLE as error:
            what = f"version {version.version} of model {version.name!r}"
            raise _of_other_code(what, card, error) from error


def challenger_card(tracking_uri: str, dataset: str) -> ModelCard:
    """The card of that two-tower, without the model. Raises TowerlineError where `load_challenger` does."""
    with _artifact(_challenger(tracking_uri, dataset), dataset, tracking_uri) as folder:
        return read_card(folder)


def load_two_tower(tracking_uri: str, dataset: str, name: str) -> tuple[str, RetrievalModel, ModelCard]:
    """A registered two-tower by its version number, or that of the `champion` or `challenger`; gives its version too.

    Raises:
        TowerlineError: there is none of that name, or where `load_pair` does.
    """
    version = _two_tower(tracking_uri, dataset, name)
    return str(version.version), *load_two_tower_version(tracking_uri, dataset, version)


def _two_tower(tracking_uri: str, dataset: str, name: str) -> "ModelVersion":
    if name == CHALLENGER:
        return _challenger(tracking_uri, dataset)
    if name == CHAMPION:
        return champion_pair(tracking_uri, dataset).models["two-tower"]
    model = registered_name(dataset, "two-tower")
    versions = {str(each.version): each for each in versions_of(connect(tracking_uri), model)}
    if name not in versions:
        raise TowerlineError(
            f"model {model!r} in the registry at {tracking_uri} has no version {name!r} (there are: "
            f"{', '.join(versions) or 'none'}; {CHAMPION} and {CHALLENGER} are names too); train one with "
            f"`python -m jobs.train_retrieval --dataset {dataset}`"
        )
    return versions[name]


def _register(run: TrackedRun, folder: Path, card: ModelCard, alias: str | None) -> str:
    from mlflow.exceptions import MlflowException

    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2), encoding="utf-8")
    (folder / CONTENTS_FILE).write_text(json.dumps(_digests(folder), indent=2), encoding="utf-8")
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


def _challenger(tracking_uri: str, dataset: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    name = registered_name(dataset, "two-tower")
    try:
        return connect(tracking_uri).get_model_version_by_alias(name, CHALLENGER)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TowerlineError(
            f"the registry at {tracking_uri} has no {CHALLENGER} of model {name!r}; "
            f"train one with `python -m jobs.train_retrieval --dataset {dataset}`"
        ) from error


@contextmanager
def _artifacts(tracking_uri: str, pair: RegisteredPair) -> Iterator[dict[Kind, Path]]:
    """The folder of each model, until the block ends."""
    with ExitStack() as folders:
        yield {
            kind: folders.enter_context(_artifact(version, pair.dataset, tracking_uri))
            for kind, version in pair.models.items()
        }


@contextmanager
def _artifact(version: "ModelVersion", dataset: str, tracking_uri: str) -> Iterator[Path]:
    """A copy of a version's artifact on this machine, every file of it as it was registered, until the block ends."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as target:
        try:
            folder = Path(download_artifacts(artifact_uri=version.source, dst_path=target, tracking_uri=tracking_uri))
            registered = json.loads((folder / CONTENTS_FILE).read_bytes())
            present = _digests(folder)
        except (MlflowException, OSError, ValueError) as error:
            in_one_line = " ".join(str(error).split())
            raise _unusable(version, dataset, f"is missing or cannot be read ({in_one_line})") from error
        for name, digest in registered.items():
            if name not in present:
                raise _unusable(version, dataset, f"lacks the file {name}")
            if present[name] != digest:
                raise _unusable(version, dataset, f"holds another {name} than was registered (cut short or altered)")
        yield folder


def _require_sources(pair: RegisteredPair, ranker: ModelCard, kept: EnsembleConfig) -> None:
    """Raise TowerlineError unless the two-tower's artifact holds the sources that the ranker was trained with."""
    fields = EnsembleConfig.model_fields
    trained_with = EnsembleConfig.model_validate(
        {name: ranker.config[name] for name in fields if name in ranker.config}
    )
    if kept == trained_with:
        return
    missing = [source.kind for source in trained_with.sources if source not in kept.sources]
    problem = (
        f"lacks the sources {', '.join(missing)} that the ranker reads (it has {', '.join(kept.names) or 'none'})"
        if missing
        else f"finds candidates by {kept.model_dump_json()} and the ranker expects {trained_with.model_dump_json()}"
    )
    raise _unusable(pair.models["two-tower"], pair.dataset, problem)


def _of_other_code(what: str, card: ModelCard, error: Exception) -> TowerlineError:
    return TowerlineError(
        f"{what} cannot be read by this code ({error}); train again, or use the code of commit {card.git_commit}"
    )


def _unusable(version: "ModelVersion", dataset: str, problem: str) -> TowerlineError:
    return TowerlineError(
        f"version {version.version} of model {version.name!r}: its artifact at {version.source} {problem}; restore "
        f"that folder, train again, or, if it is the champion's, go back to the champion before with `python -m "
        f"jobs.rollback_model --dataset {dataset}`"
    )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file but the list itself."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CONTENTS_FILE)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
