"""A student of a registered variant: a smaller two-tower before the same ranker, registered like any other variant."""

from dataclasses import dataclass

from train.card import ModelCard
from train.crew import same_workers
from train.distillation import student_of
from train.loop import EpochResult
from train.models.retrieval import RetrievalModel
from train.ranking import RankingConfig, TrainedRanking
from train.registry import LoadedModels, RegisteredPair
from train.retrieval import RetrievalConfig
from train.workflow import Workflow


@dataclass(frozen=True)
class Student:
    """What a distillation gave."""

    pair: RegisteredPair
    held_out: RetrievalModel
    """The same student fitted on the train split alone, by which it can be judged."""


@same_workers()
def make_student(workflow: Workflow, teacher: LoadedModels, held_out_teacher: RetrievalModel | None) -> Student:
    """Distil the two-tower of a variant twice, on the train split to judge it and on all events to serve; register it.

    The ranker is the teacher's: its features of a candidate are standardised by list, whoever found the candidates.
    `held_out_teacher`: the teacher's twin on the train split; one is trained if None.
    """
    config = student_of(RetrievalConfig.model_validate(teacher.cards["two-tower"].config))
    ranking_config = RankingConfig.model_validate(teacher.cards["ranker"].config)
    ranking = _as_trained(teacher)
    held_out = workflow.train_retrieval(config, held_out_teacher)
    measured = workflow.compare(held_out.model, ranking, ranking_config.num_candidates)
    refitted = workflow.refit_retrieval(config, held_out.best_epoch + 1, teacher.retrieval)
    workflow.register_challenger(held_out, config, measured, alias=None)
    pair = workflow.register_pair(refitted, config, ranking, ranking_config, measured)
    return Student(pair, held_out.model)


def _as_trained(models: LoadedModels) -> TrainedRanking:
    card = models.cards["ranker"]
    history = [_epoch_of(card, epoch) for epoch in range(len(card.curve))]
    return TrainedRanking(models.ranking, history, card.best_epoch, RankingConfig.model_validate(card.config))


def _epoch_of(card: ModelCard, epoch: int) -> EpochResult:
    """What `train.card.curve_of` flattened."""
    known = EpochResult.model_fields
    values = card.curve[epoch]
    metrics = {name: value for name, value in values.items() if name not in known}
    return EpochResult.model_validate({name: values[name] for name in values if name in known} | {"metrics": metrics})
