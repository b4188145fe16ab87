"""Which gradients a model has: those that travel together, and those that are sparse."""

from torch import nn


def buckets(model: nn.Module, bucket_mb: float) -> list[list[nn.Parameter]]:
    """Parameters whose gradients appear after each other in the backward pass, so many MiB of them at a time."""
    found: list[list[nn.Parameter]] = []
    room = 0.0
    for parameter in reversed([each for each in model.parameters() if each.requires_grad]):
        size = parameter.numel() * parameter.element_size()
        if not found or size > room:
            found.append([])
            room = bucket_mb * 2**20
        found[-1].append(parameter)
        room -= size
    return found


def sparse_embeddings(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradients are sparse: of embeddings made with `sparse=True`."""
    tables = [
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    ]
    return [name for name in tables if model.get_parameter(name).requires_grad]
