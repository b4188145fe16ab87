"""A two-tower that goes on from another one: its weights for what it knew, fresh ones for what is new."""

import torch
from torch import Tensor

from cluster.errors import TowerlineError
from train.models.retrieval import RetrievalModel
from train.models.two_tower import TwoTower

CATALOGUE = {"item_attributes_IA"}
COUNTS = {"item_frequency_I", "longest_age"}


def warm_start(network: TwoTower, before: RetrievalModel, *, count: bool) -> None:
    """Give `network` the weights of `before`; its vocabulary must be that of `before`, grown (`Vocabulary.grown`).

    New items start without an id vector of their own, placed by their attributes and titles; new attributes, words and
    types of events start as in a fresh model. `count`: the events that `before` has seen count as seen.

    Raises:
        TowerlineError: the two differ in shape by more than their vocabularies.
    """
    old = before.network.state_dict()
    new = network.state_dict()
    for name in set(old) ^ set(new):
        raise TowerlineError(_other_shape(name, old.get(name), new.get(name)))
    with torch.no_grad():
        network.item.weight.zero_()
        for name, weights in new.items():
            if name in CATALOGUE or (name in COUNTS and not count):
                continue
            known = old[name]
            if known.shape[1:] != weights.shape[1:] or (known.dim() and len(known) > len(weights)):
                raise TowerlineError(_other_shape(name, known, weights))
            weights[: len(known)].copy_(known) if known.dim() else weights.copy_(known)


def _other_shape(name: str, old: Tensor | None, new: Tensor | None) -> str:
    shapes = ["nothing" if each is None else f"a tensor of shape {tuple(each.shape)}" for each in (old, new)]
    return (
        f"training cannot go on from that model: it holds {shapes[0]} as {name!r}, the configuration asks for "
        f"{shapes[1]}; take the model's own configuration, or train from scratch"
    )
