"""A small two-tower that learns from a large one: the student sees the teacher's scores of items beside the events.

Hinton et al., "Distilling the Knowledge in a Neural Network" (2015); for rankings Tang & Wang, "Ranking Distillation"
(KDD 2018). What was not chosen is not all equally wrong, and the teacher says how wrong. The loss is

    (1 - soft_share) * cross-entropy of the events + soft_share * T² * KL(teacher's softmax || student's softmax)

both over the items that the two-tower's own loss chooses among, at temperature T in the second term; T² keeps the
gradients of both at the same size. Only the loss differs: the student's weights are those of any two-tower.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cluster.errors import TowerlineError
from data.offline.store import read_examples
from train.loop import EpochResult
from train.models.retrieval import RetrievalModel
from train.models.two_tower import RetrievalBatch, TwoTower, TwoTowerConfig
from train.order import Share
from train.retrieval import (
    USERS_AT_ONCE,
    Distillation,
    RetrievalConfig,
    RetrievalTask,
    RetrievalTaskConfig,
    TrainedRetrieval,
    train_retrieval,
)
from train.scaling import Scaling
from train.tracking import TrackingTarget

SHRINK = 4
"""How many times narrower than its teacher a student is, unless its configuration says otherwise."""
LEAST_DIM = 4


@dataclass(frozen=True)
class DistillationBatch:
    """One rank's share of a global batch, and what the teacher makes of its users."""

    examples: RetrievalBatch
    teacher_users_BE: Tensor
    """float32: the teacher's user vectors, as wide as the teacher is."""

    def to(self, device: torch.device) -> "DistillationBatch":
        """The same batch on another device."""
        return DistillationBatch(self.examples.to(device), self.teacher_users_BE.to(device))


class StudentTwoTower(TwoTower):
    """A two-tower whose training loss heeds a teacher."""

    teacher_items_IE: Tensor

    def learn_from(self, teacher_items_IE: Tensor, distillation: Distillation) -> None:
        """Take the teacher's item vectors. They move with the model and are no part of its weights."""
        self.distillation = distillation
        self.register_buffer("teacher_items_IE", teacher_items_IE, persistent=False)

    def forward(self, batch: DistillationBatch) -> Tensor:  # type: ignore[override]
        """The loss of the module's docstring, scaled as that of any two-tower."""
        examples, soft_share = batch.examples, self.distillation.soft_share
        items_ID = self.encode_items()
        logits_BC, chosen_B = self.choice_logits(self._encode(examples.users, items_ID), items_ID, examples)
        teacher_BC, _ = self.choice_logits(batch.teacher_users_BE, self.teacher_items_IE, examples)
        hard = functional.cross_entropy(logits_BC, chosen_B, reduction="sum")
        soft = soft_loss(logits_BC, teacher_BC, self.distillation.temperature)
        return ((1 - soft_share) * hard + soft_share * soft) * examples.scale


def soft_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T² * KL(teacher || student) of logits that are -inf in the same places, summed over the rows."""
    teacher_probabilities_BC = (teacher_BC / temperature).softmax(dim=1)
    student_log_BC = (student_BC / temperature).log_softmax(dim=1).masked_fill(teacher_probabilities_BC == 0, 0.0)
    return functional.kl_div(student_log_BC, teacher_probabilities_BC, reduction="sum") * temperature**2


class DistillationTask(RetrievalTask):
    """A student with its examples and what its teacher says of them, as `train.loop` wants them."""

    network = StudentTwoTower
    model: StudentTwoTower

    def __init__(self, task: RetrievalTaskConfig) -> None:
        super().__init__(task)
        assert task.config.distillation is not None
        assert task.teacher is not None
        teacher = RetrievalModel.load(task.teacher)
        if teacher.vocabulary.items != task.vocabulary.items:
            raise TowerlineError(
                f"the teacher in {task.teacher} knows {teacher.vocabulary.num_items} items, and the student "
                f"{task.vocabulary.num_items}, or in another order: its scores would be of other items; train the "
                "teacher again on the data set as it is now"
            )
        chosen = task.rows.select(read_examples(task.examples))
        vectors = [teacher.encode_users(rows) for rows in chosen.iter_slices(USERS_AT_ONCE)]
        self._teacher_users_BE = torch.from_numpy(np.concatenate(vectors))
        self.model.learn_from(torch.from_numpy(teacher.item_vectors_ID), task.config.distillation)

    def batch(self, share: Share) -> DistillationBatch:  # type: ignore[override]
        """The examples of a share with the teacher's vectors of their users."""
        return DistillationBatch(super().batch(share), self._teacher_users_BE[share.rows])


def student_of(config: RetrievalConfig, shrink: int = SHRINK) -> RetrievalConfig:
    """How a student of the model that `config` makes is trained: `shrink` times narrower, one head, no blocks."""
    teacher = config.two_tower
    narrow = {"embedding_dim": max(teacher.embedding_dim // shrink, LEAST_DIM), "attention_heads": 1}
    small = TwoTowerConfig.model_validate(teacher.model_dump() | narrow | {"causal_blocks": 0})
    return config.model_copy(update={"two_tower": small, "distillation": Distillation(teacher=teacher)})


def distil_retrieval(
    task: RetrievalTaskConfig,
    teacher: RetrievalModel,
    scaling: Scaling,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[EpochResult], None] | None = None,
) -> TrainedRetrieval:
    """Fit a student of `teacher`, which every worker reads from the run's folder; else as `train_retrieval`."""
    folder = storage.absolute() / name / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    teacher.save(folder)
    options: dict[str, Any] = {"name": name, "storage": storage, "tracking": tracking, "progress": progress}
    return train_retrieval(dataclasses.replace(task, teacher=folder), scaling, build_task=DistillationTask, **options)
