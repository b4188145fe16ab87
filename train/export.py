"""A variant as files that need no torch: both networks in ONNX beside what the registry holds, and a manifest.

    manifest.json                 `ExportManifest`
    two-tower/                    as the registry keeps it, the catalogue included, and
        item_vectors.npy          float32 (I + 1, D + 1) by item code; row 0 is no item
        user_tower.onnx           encoded users -> vectors; their dot products with the item vectors are the logits
        user_tower_int8.onnx
    ranker/                       as the registry keeps it, and ranker.onnx, ranker_int8.onnx

Every float32 network is run by onnxruntime on real feature rows before anybody sees the folder, and must give what
torch gives. The folder is there whole or not at all.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import TowerlineError
from cluster.provenance import git_commit, versions
from train.asked import Asked
from train.card import Kind
from train.index import Floats
from train.models.onnx_network import OnnxNetwork, TensorSpec
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.models.runtimes import RankingRunBy, RetrievalRunBy
from train.onnx_export import export_ranker, export_user_tower, opset_of, quantise
from train.registry import CATALOGUE_FILE, INDEX_FILE, LoadedModels

FORMAT = "towerline-export/1"
MANIFEST_FILE = "manifest.json"
TOLERANCE = 1e-4
"""Of a float32 network: largest |onnx - torch| / max(1, |torch|) of any number it gives."""

Precision = Literal["float32", "int8"]
SUFFIX: dict[Precision, str] = {"float32": "", "int8": "_int8"}


class NetworkFile(BaseModel):
    """One ONNX file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    opset: int
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    difference: float
    """From torch on real feature rows, as `TOLERANCE` measures it."""
    tolerance: float | None
    """What the difference had to stay below; None of int8, which is judged by its lists."""


class ExportManifest(BaseModel):
    """What an exported folder holds and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["towerline-export/1"]
    dataset: str
    variant: str
    model_versions: dict[Kind, str]
    """In the registry."""
    data_version: str
    trained_by: str
    """Git commit."""
    exported_by: str
    """Git commit."""
    feature_fingerprints: dict[str, str]
    """Feature view to the hash of the definition that the inputs must be computed by."""
    libraries: dict[str, str]
    checked_users: int
    """Real feature rows that the networks were compared on, in batches of all and of one, and without their history."""
    networks: dict[str, NetworkFile]
    """By their path in the folder."""
    files: dict[str, str]
    """Path to SHA-256 of every file but this one."""


@dataclass(frozen=True)
class ExportedModels:
    """The models of a folder, their networks run by onnxruntime."""

    manifest: ExportManifest
    retrieval: RetrievalModel
    ranking: RankingModel


def write_export(folder: Path, models: LoadedModels, asked: Asked, *, int8: bool = False) -> ExportManifest:
    """Write a variant into an empty folder, and check it. `asked`: what real questions of this pair come to.

    Raises:
        TowerlineError: a float32 network gives something else than torch; names the file and the difference.
    """
    networks: dict[str, NetworkFile] = {}
    for kind, file, export, expected, batches in (
        ("two-tower", "user_tower", _user_tower(models, asked), models.retrieval.vectors_of, asked.user_batches),
        ("ranker", "ranker", _ranker(models, asked), models.ranking.scores_of, asked.input_batches),
    ):
        (folder / kind).mkdir(parents=True)
        path = folder / kind / f"{file}.onnx"
        export(path)
        networks[f"{kind}/{path.name}"] = checked(path, expected, batches, TOLERANCE)
        if int8:
            small = path.with_name(f"{file}{SUFFIX['int8']}.onnx")
            quantise(path, small)
            networks[f"{kind}/{small.name}"] = checked(small, expected, batches, None)
    models.retrieval.save(folder / "two-tower")
    models.items.write_parquet(folder / "two-tower" / CATALOGUE_FILE)
    np.save(folder / "two-tower" / INDEX_FILE, models.retrieval.item_vectors_ID)
    models.ranking.save(folder / "ranker")
    card = models.cards["two-tower"]
    manifest = ExportManifest(
        format=FORMAT,
        dataset=card.dataset,
        variant=models.variant,
        model_versions=dict(models.versions),
        data_version=card.data_version,
        trained_by=card.git_commit,
        exported_by=git_commit(),
        feature_fingerprints=card.feature_fingerprints,
        libraries=versions() | {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
        checked_users=len(asked),
        networks=networks,
        files=_digests(folder),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return manifest


def checked(
    path: Path, expected: Callable[[Any], Floats], batches: Callable[[], Iterator[Any]], tolerance: float | None
) -> NetworkFile:
    """Run the file on all batches beside torch. Raises TowerlineError where the difference exceeds the tolerance."""
    network = OnnxNetwork(path)
    worst = max(difference(expected(batch), network(batch)) for batch in batches())
    if tolerance is not None and not worst <= tolerance:
        raise TowerlineError(
            f"{path.name}: output {network.output.name!r} differs from torch by {worst:.3g} of max(1, |torch|), and "
            f"{tolerance:g} is allowed; nothing is exported. Report it with the model's configuration: an operator is "
            "converted wrongly, or the model's numbers are too large for float32"
        )
    return NetworkFile(
        precision="float32" if tolerance is not None else "int8",
        opset=opset_of(path),
        inputs=network.inputs,
        output=network.output,
        difference=worst,
        tolerance=tolerance,
    )


def difference(expected: Floats, found: Floats) -> float:
    """Largest |found - expected| / max(1, |expected|); infinite where only one is finite, or for another shape."""
    if expected.shape != found.shape or not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return float("inf")
    apart = np.abs(found[finite] - expected[finite]) / np.maximum(1, np.abs(expected[finite]))
    return float(apart.max(initial=0))


def require_ours(folder: Path) -> None:
    """Raise TowerlineError if `folder` is there, is not empty and is no earlier export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        found = json.loads((folder / MANIFEST_FILE).read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != FORMAT:
        raise TowerlineError(
            f"--output {folder} is there and holds no earlier export ({MANIFEST_FILE} with format {FORMAT!r}); name a "
            "folder that is not there yet, or delete it"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` when the block ends, and is gone if the block raises.

    Raises:
        TowerlineError: `folder` is there and is no earlier export.
    """
    require_ours(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{what}") for what in ("part", "old"))
    unfinished.mkdir()
    try:
        yield unfinished
        require_ours(folder)
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        for left in (unfinished, old):
            shutil.rmtree(left, ignore_errors=True)


def read_manifest(folder: Path) -> ExportManifest:
    """The manifest of an export of which every file is as it was written.

    Raises:
        TowerlineError: there is none, it is of another format, or a file is missing or altered.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = ExportManifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        in_one_line = " ".join(str(error).split())
        raise TowerlineError(f"{path} is no manifest of an export ({in_one_line}); export the model again") from error
    present = _digests(folder)
    for name, digest in manifest.files.items():
        if present.get(name) != digest:
            how = "is missing" if name not in present else "is not as it was exported (cut short or altered)"
            raise TowerlineError(f"{folder / name} {how}; export the model again")
    return manifest


def load_export(folder: Path, precision: Precision = "float32") -> ExportedModels:
    """The models of an export. Raises TowerlineError as `read_manifest`, or if it has no networks of that precision."""
    manifest = read_manifest(folder)
    names = [f"two-tower/user_tower{SUFFIX[precision]}.onnx", f"ranker/ranker{SUFFIX[precision]}.onnx"]
    if missing := [name for name in names if name not in manifest.networks]:
        raise TowerlineError(f"{folder} holds no {missing[0]}; export the model again with --int8")
    user_tower, ranker = (OnnxNetwork(folder / name) for name in names)
    retrieval = RetrievalModel.load(folder / "two-tower", np.load(folder / "two-tower" / INDEX_FILE))
    ranking = RankingModel.load(folder / "ranker")
    return ExportedModels(manifest, RetrievalRunBy(retrieval, user_tower), RankingRunBy(ranking, ranker))


def _user_tower(models: LoadedModels, asked: Asked) -> Callable[[Path], None]:
    return lambda path: export_user_tower(models.retrieval, asked.users, path)


def _ranker(models: LoadedModels, asked: Asked) -> Callable[[Path], None]:
    return lambda path: export_ranker(models.ranking, asked.inputs, path)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
