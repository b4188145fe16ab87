from torch import nn

from train.gradients import buckets, sparse_embeddings


def test_buckets_are_filled_from_the_last_layer_on() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256, bias=False), nn.Linear(256, 2))
    model[2].bias.requires_grad = False
    first, middle, last = model[0], model[1], model[2]
    assert buckets(model, 100) == [[last.weight, middle.weight, first.bias, first.weight]]
    assert buckets(model, 0.26) == [[last.weight, middle.weight, first.bias], [first.weight]]
    assert buckets(model, 0) == [[last.weight], [middle.weight], [first.bias], [first.weight]]


def test_sparse_embeddings_that_are_trained_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(3, 2, sparse=True), "b": nn.EmbeddingBag(3, 2, sparse=True)})
    model["c"], model["d"] = nn.Embedding(3, 2), nn.Embedding(3, 2, sparse=True)
    model["d"].weight.requires_grad = False
    assert sparse_embeddings(model) == ["a.weight", "b.weight"]
    assert sparse_embeddings(nn.Embedding(3, 2, sparse=True)) == ["weight"]
