"""Networks of torch as ONNX files, in float32 and with int8 weights.

What a network reads is a dataclass of tensors whose names end in the letters of their axes (`candidates_BK`). Those
fields are the inputs of the file, under their names, and the letters of `FREE_AXES` its free axes: a field that is
added to the dataclass is exported without a line here.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from train.encoding import UserBatch
from train.models.onnx_network import axes_of, tensors_of, with_tensors
from train.models.ranker import RankerInputs
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel

if TYPE_CHECKING:
    from train.models.onnx_network import Inputs

FREE_AXES = ("B", "K")
"""Users and candidates; all other axes have the size that the model was made with."""
USER_VECTORS = "user_vectors_BD"
LOGITS = "logits_BK"


def export_user_tower(model: RetrievalModel, sample: UserBatch, path: Path) -> None:
    """Encoded users to vectors (B, D + 1); the item vectors that histories are read through are part of the file.

    `sample`: two users or more, as the tower is asked.
    """
    _export(_UserTower(model, sample), sample, USER_VECTORS, path)


def export_ranker(model: RankingModel, sample: RankerInputs, path: Path) -> None:
    """The ranker's inputs to logits (B, K), -inf where there is no candidate.

    `sample`: two users and two candidates or more, as the ranker is asked.
    """
    _export(_Ranker(model, sample), sample, LOGITS, path)


def quantise(source: Path, target: Path) -> None:
    """The network of `source` with its linear layers and embeddings in int8, what flows between them as it comes.

    ONNX Runtime's dynamic quantisation: weights are rounded per output channel, activations at each call. One of the
    eight bits stays unused, because the products of processors without VNNI would overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / source.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def opset_of(path: Path) -> int:
    """Version of the standard operators that a file is written in."""
    model = onnx.load(path)
    return next(int(each.version) for each in model.opset_import if each.domain == "")


class _UserTower(nn.Module):
    items_ID: Tensor

    def __init__(self, model: RetrievalModel, sample: UserBatch) -> None:
        super().__init__()
        self.network = model.network
        self._sample = sample
        self.register_buffer("items_ID", torch.from_numpy(model.item_vectors_ID))

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.network.encode_users(_fed(self._sample, tensors), self.items_ID)


class _Ranker(nn.Module):
    def __init__(self, model: RankingModel, sample: RankerInputs) -> None:
        super().__init__()
        self.network = model.network
        self._sample = sample

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.network.score(_fed(self._sample, tensors))


def _fed(sample: "Inputs", tensors: tuple[Tensor, ...]) -> "Inputs":
    """The dataclass of which `tensors` are those of `tensors_of`."""
    return with_tensors(sample, dict(zip(tensors_of(sample), tensors, strict=True)))


def _export(module: nn.Module, sample: Any, output: str, path: Path) -> None:
    tensors = tensors_of(sample)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(tensors.values()),
            dynamo=True,
            verbose=False,
            input_names=list(tensors),
            output_names=[output],
            dynamic_shapes=(tuple(_free_axes(name, tensor) for name, tensor in tensors.items()),),
        )
    assert program is not None
    onnx.save(_without_origin(program.model_proto), path)


def _free_axes(name: str, tensor: Tensor) -> dict[int, Any]:
    """Axis to the letter of those that are free."""
    axes = axes_of(name)
    if len(axes) != tensor.dim():
        raise ValueError(f"{name} has {tensor.dim()} axes; its name must end in a letter for each, as candidates_BK")
    return {axis: torch.export.Dim(letter) for axis, letter in enumerate(axes) if letter in FREE_AXES}


def _without_origin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what the exporter notes of each node: stack traces, with the paths of this machine."""
    for graph in (model.graph, *model.functions):
        for noted in (graph, *graph.node, *graph.value_info):
            noted.ClearField("metadata_props")
            noted.ClearField("doc_string")
    for named in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        named.ClearField("metadata_props")
        named.ClearField("doc_string")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: deprecated calls of its own, packages it could use, names it shares."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name: ", category=UserWarning)
            yield
    finally:
        registration.setLevel(before)
