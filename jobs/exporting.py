"""What `jobs.export_models` does between its command line and its console."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import TowerlineError
from cluster.session import connect
from cluster.settings import Settings
from data.dataset import Dataset, open_dataset
from data.features import with_sequence
from jobs.console import Console
from jobs.training import open_workflow
from train.asked import Asked, Pairing, asked
from train.candidates import ItemFeatures
from train.cases import Cases, cases
from train.evaluation import Measurements
from train.export import SUFFIX, Precision, load_export, require_ours, whole_folder, write_export
from train.export_figures import TORCH, Cost, Quality, Runtime, costs_of, qualities_of
from train.held_out import held_out_twin
from train.models.files import WEIGHTS_FILE
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.pair import RankedRecommender
from train.ranking import RankingConfig, with_sources
from train.registry import INDEX_FILE, LoadedModels, RegisteredPair, champion_pair, find_pair, load_pair
from train.scaling import Scaling
from train.students import make_student
from train.training_rows import TrainingRows

SOME = slice(0, 256)
"""The questions that the networks are compared and timed on."""
ONNX = "onnx"
STUDENT = "student"


@dataclass(frozen=True)
class Source:
    """A registered variant, the questions of its protocol, and how its models become a recommender."""

    dataset: Dataset
    pair: RegisteredPair
    models: LoadedModels
    cases: Cases
    pairing: Pairing

    @property
    def train_split(self) -> TrainingRows:
        """What a model may have learnt from that is asked the questions."""
        return TrainingRows(protocol=self.models.cards["ranker"].trained_on.protocol)

    def asked(self, retrieval: RetrievalModel) -> Asked:
        """What the first questions come to with this two-tower."""
        rows, exclude = self.cases.rows[SOME], self.cases.exclude[SOME]
        return asked(self.pairing, retrieval, self.models.ranking, rows, exclude)


@dataclass(frozen=True)
class Outcome:
    """What was exported, and what it costs and keeps."""

    folder: Path
    source: Source
    costs: Mapping[str, Cost]
    qualities: Mapping[str, Quality]
    measurements: Measurements | None
    notes: Sequence[str]
    """What a reader of the figures must know, a sentence each."""


def open_source(settings: Settings, dataset_name: str, variant: str | None) -> Source:
    """The variant of that name, or the champion.

    Raises:
        TowerlineError: there is no such data set or variant, or it was trained on other data than there is now.
    """
    dataset = open_dataset(settings.home, dataset_name)
    pair = (
        find_pair(settings.tracking_uri, dataset_name, variant)
        if variant is not None
        else champion_pair(settings.tracking_uri, dataset_name)
    )
    models = load_pair(settings.tracking_uri, pair)
    card, ranking_card = models.cards["two-tower"], models.cards["ranker"]
    if card.data_version != dataset.manifest.data_version:
        raise TowerlineError(
            f"variant {pair.variant} was trained on data version {card.data_version[:12]} of data set "
            f"{dataset_name!r}, which is now {dataset.manifest.data_version[:12]}: it cannot be checked or measured on "
            "it; train again, or name another --variant"
        )
    protocol, events = ranking_card.trained_on.protocol, dataset.events()
    items = ItemFeatures(protocol.visible(protocol.assign(with_sequence(events))), models.retrieval.vocabulary)
    num_candidates = RankingConfig.model_validate(ranking_card.config).num_candidates

    def pairing(retrieval: RetrievalModel, ranking: RankingModel) -> RankedRecommender:
        return RankedRecommender(retrieval, ranking, items, num_candidates)

    vocabulary = models.retrieval.vocabulary
    questions = cases(protocol, events, dataset.users(), vocabulary, history_length=card.history_length)
    return Source(dataset, pair, models, questions, pairing)


def export_variant(
    settings: Settings, source: Source, folder: Path, console: Console, *, int8: bool, student: bool
) -> Outcome:
    """Export a variant into `folder`, with its student beside it if asked for, and measure what can be measured.

    Raises:
        TowerlineError: `folder` is there and is no earlier export, or a network gives something else than torch.
    """
    require_ours(folder)
    notes = []
    variants, twins = {"": source.models}, dict[str, RetrievalModel]()
    try:
        twins[""] = held_out_twin(
            settings.tracking_uri, source.pair, source.models.cards["two-tower"], source.train_split
        )
    except TowerlineError as error:
        notes.append(f"NDCG is not measured, for what serves has seen the answers: {error}")
    if student:
        with connect(settings, log_to_driver=False):
            scaling = Scaling.model_validate(source.models.cards["two-tower"].scaling)
            workflow = open_workflow(
                settings, source.dataset.name, scaling, console, protocol=source.train_split.protocol
            )
            made = make_student(workflow, source.models, twins.get(""))
        workflow.forget()
        console.registered(made.pair)
        variants[STUDENT], twins[STUDENT] = load_pair(settings.tracking_uri, made.pair), made.held_out
    qualities, measurements = _judge(source, variants, twins, int8=int8) if "" in twins else ({}, None)
    with whole_folder(folder) as unfinished:
        written = _write(unfinished, source, variants, int8=int8)
        costs = costs_of(written, source.pairing, source.cases.rows[SOME], source.cases.exclude[SOME])
    return Outcome(folder, source, costs, qualities, measurements, notes)


def _judge(
    source: Source, variants: Mapping[str, LoadedModels], twins: Mapping[str, RetrievalModel], *, int8: bool
) -> tuple[dict[str, Quality], Measurements]:
    """The quality of every runtime, by models that went the same way and have not seen the answers."""
    known = source.train_split.seen(with_sequence(source.dataset.events()))
    config = RankingConfig.model_validate(source.models.cards["ranker"].config)
    held_out = {
        name: dataclasses.replace(models, retrieval=with_sources(twins[name], config, known))
        for name, models in variants.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        runtimes = _write(Path(folder), source, held_out, int8=int8)
        models = {name: (each.retrieval, each.ranking) for name, each in runtimes.items()}
        return qualities_of(models, source.pairing, source.cases, source.dataset.items())


def _write(folder: Path, source: Source, variants: Mapping[str, LoadedModels], *, int8: bool) -> dict[str, Runtime]:
    """Export each variant into the folder of its name; returns torch, and every network that was written."""
    precisions: tuple[Precision, ...] = ("float32", "int8") if int8 else ("float32",)
    runtimes: dict[str, Runtime] = {}
    for name, models in variants.items():
        place = folder / name
        asked = source.asked(models.retrieval)
        write_export(place, models, asked, int8=int8)
        vectors = place / "two-tower" / INDEX_FILE
        if not name:
            weights = (place / "two-tower" / WEIGHTS_FILE, place / "ranker" / WEIGHTS_FILE)
            runtimes[TORCH] = Runtime(models.retrieval, models.ranking, (vectors, *weights), asked)
        for precision in precisions:
            loaded = load_export(place, precision)
            networks = [place / each for each, file in loaded.manifest.networks.items() if file.precision == precision]
            runtime = f"{name or ONNX}{SUFFIX[precision]}"
            runtimes[runtime] = Runtime(loaded.retrieval, loaded.ranking, (vectors, *networks), asked)
    return runtimes
