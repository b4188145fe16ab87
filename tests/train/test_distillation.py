"""A student learns from its teacher what the teacher knows, and is a two-tower like any other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import TowerlineError
from cluster.settings import Settings
from tests.train.conftest import RETRIEVAL, DonePath
from tests.train.planted import Planted, batches
from train.distillation import DistillationTask, distil_retrieval, soft_loss, student_of
from train.loop import FitConfig
from train.models.retrieval import RetrievalModel
from train.models.two_tower import TwoTower
from train.retrieval import Distillation, RetrievalConfig, RetrievalTask, retrieval_task, train_retrieval
from train.scaling import Scaling

ALONE = Scaling(backend="none")


@pytest.fixture
def config() -> RetrievalConfig:
    """A student that learns from its teacher alone."""
    student = student_of(RETRIEVAL.model_copy(update={"fit": FitConfig(epochs=6)}), shrink=2)
    soft = Distillation(teacher=RETRIEVAL.two_tower, soft_share=1.0)
    return student.model_copy(update={"distillation": soft})


def distance(student: RetrievalModel | TwoTower, teacher: RetrievalModel, task: RetrievalTask) -> float:
    """Mean KL divergence of the student's choices from the teacher's, over the first batch of examples."""
    network = student.network if isinstance(student, RetrievalModel) else student
    with torch.inference_mode():
        network.eval()
        users = task._users[slice(0, 200)]
        logits = [each.encode_users(users) @ each.encode_items().T for each in (network, teacher.network)]
        for each in logits:
            each[:, 0] = -torch.inf
        return soft_loss(logits[0], logits[1], 1.0).item() / 200


def test_the_student_of_a_model_is_narrower_and_knows_its_teacher() -> None:
    student = student_of(RETRIEVAL)
    assert (student.two_tower.embedding_dim, student.two_tower.attention_heads) == (4, 1)
    assert student.two_tower.history_length == RETRIEVAL.two_tower.history_length
    assert student.of_teacher == RETRIEVAL
    assert RetrievalConfig.model_validate(student.model_dump(mode="json")) == student


def test_the_soft_loss_by_hand() -> None:
    student = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.5, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.3, -1.0, -torch.inf], [2.0, 0.5, -torch.inf]])
    p, q = ((logits[0, :2].detach().double() / 3).softmax(dim=0) for logits in (teacher, student))
    loss = soft_loss(student, teacher, 3.0)
    assert loss.item() == pytest.approx(float((p * (p / q).log()).sum()) * 9, rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[1].abs().max() < 1e-6


def test_a_student_learns_from_its_teacher_alone(
    path: DonePath, planted: Planted, config: RetrievalConfig, tmp_path: Path
) -> None:
    teacher = path.retrieval.model
    task = retrieval_task(planted.dataset, planted.folder, config)
    trained = distil_retrieval(task, teacher, ALONE, name="student", storage=tmp_path)
    losses = [epoch.loss for epoch in trained.history]
    assert losses[-1] < 0.5 * losses[0]
    plain = RetrievalTask(
        retrieval_task(planted.dataset, planted.folder, config.model_copy(update={"distillation": None}))
    )
    assert distance(trained.model, teacher, plain) < 0.5 * distance(plain.model, teacher, plain)
    of_teacher = max(epoch.metrics["ndcg@10"] for epoch in path.retrieval.history)
    assert trained.history[trained.best_epoch].metrics["ndcg@10"] > 0.6 * of_teacher
    trained.model.save(tmp_path)
    loaded = RetrievalModel.load(tmp_path)
    np.testing.assert_array_equal(loaded.item_vectors_ID, trained.model.item_vectors_ID)
    assert loaded.item_vectors_ID.shape[1] == 8 + 1


@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax", "in_batch_softmax"])
def test_both_terms_are_of_the_items_that_the_loss_chooses_among(
    path: DonePath, planted: Planted, config: RetrievalConfig, tmp_path: Path, loss: str
) -> None:
    """With the student's own vectors as its teacher's the soft term is zero, and the rest is the usual loss."""
    two_tower = config.two_tower.model_copy(update={"loss": loss, "num_negatives": 10, "dropout": 0, "id_dropout": 0})
    soft = Distillation(teacher=two_tower, soft_share=0.25)
    config = config.model_copy(update={"two_tower": two_tower, "distillation": soft})
    path.retrieval.model.save(tmp_path)
    task = retrieval_task(planted.dataset, planted.folder, config)
    student = DistillationTask(dataclasses.replace(task, teacher=tmp_path))
    batch = next(batches(student, 0))
    network = student.model
    network.learn_from(network.encode_items().detach(), soft)
    own = dataclasses.replace(batch, teacher_users_BE=network.encode_users(batch.examples.users).detach())
    expected = TwoTower.forward(network, batch.examples)
    torch.testing.assert_close(network(own), 0.75 * expected)
    network.learn_from(torch.from_numpy(path.retrieval.model.item_vectors_ID), soft)
    network(batch).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert "teacher_items_IE" not in network.state_dict()


def test_a_student_without_a_teacher_is_refused(planted: Planted, config: RetrievalConfig, tmp_path: Path) -> None:
    task = retrieval_task(planted.dataset, planted.folder, config)
    with pytest.raises(TowerlineError, match=r"retrieval\.distillation is set, and this training has no teacher"):
        train_retrieval(task, ALONE, name="alone", storage=tmp_path)


def test_a_teacher_of_other_items_is_refused(
    path: DonePath, planted: Planted, config: RetrievalConfig, tmp_path: Path
) -> None:
    model = path.retrieval.model
    other = dataclasses.replace(model.vocabulary, items=model.vocabulary.items[::-1])
    teacher = RetrievalModel(model.config, other, model.network.state_dict(), model.covisitation)
    task = retrieval_task(planted.dataset, planted.folder, config)
    with pytest.raises(TowerlineError, match="its scores would be of other items"):
        distil_retrieval(task, teacher, ALONE, name="other", storage=tmp_path)


def test_a_workflow_trains_the_teacher_first_where_none_is_given(
    path: DonePath, config: RetrievalConfig, tmp_path: Path
) -> None:
    workflow = dataclasses.replace(path.workflow, settings=Settings(home=tmp_path), progress=None)
    short = config.model_copy(update={"fit": FitConfig(epochs=1)})
    trained = workflow.train_retrieval(short)
    taught = workflow.train_retrieval(short.of_teacher)
    again = workflow.train_retrieval(short, teacher=taught.model)
    np.testing.assert_array_equal(trained.model.item_vectors_ID, again.model.item_vectors_ID)
    other = workflow.train_retrieval(short, teacher=path.retrieval.model)
    assert not np.array_equal(trained.model.item_vectors_ID, other.model.item_vectors_ID)
