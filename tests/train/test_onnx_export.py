"""Networks with random weights as ONNX files: what goes in, what comes out, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import TowerlineError
from data.offline.store import read_examples
from tests.train.planted import Planted
from train.encoding import UserBatch, encode_users
from train.models.onnx_network import OnnxNetwork, tensors_of, with_tensors
from train.models.ranker import RankerInputs
from train.models.retrieval import RetrievalModel
from train.onnx_export import _free_axes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with one input of each kind of axis."""
    import onnx
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info("ages_BL", TensorProto.FLOAT, ["B", 3]),
        helper.make_tensor_value_info("codes_BL", TensorProto.INT32, ["B", 3]),
    ]
    nodes = [
        helper.make_node("Cast", ["codes_BL"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["ages_BL", "floats"], ["sum_BL"]),
    ]
    output = helper.make_tensor_value_info("sum_BL", TensorProto.FLOAT, ["B", 3])
    graph = helper.make_graph(nodes, "sum", inputs, [output])
    path = tmp_path_factory.mktemp("onnx") / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@dataclasses.dataclass(frozen=True)
class Read:
    ages_BL: torch.Tensor
    codes_BL: torch.Tensor
    unused_B: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    read: Read
    rest_B: torch.Tensor


def test_the_fields_of_a_dataclass_are_fed_by_name(file: Path) -> None:
    network = OnnxNetwork(file)
    for size in (1, 4):
        read = Read(torch.rand(size, 3), torch.ones(size, 3, dtype=torch.int32))
        np.testing.assert_array_equal(network(read), read.ages_BL.numpy() + 1)
    assert [str(spec) for spec in network.inputs] == ["float32 (B, 3)", "int32 (B, 3)"]
    assert (network.output.name, network.output.shape) == ("sum_BL", ("B", 3))


@pytest.mark.parametrize(
    ("ages", "codes", "message"),
    [
        ((2, 4), torch.int32, r"input 'ages_BL' is float32 \(2, 4\), expected float32 \(B, 3\)"),
        ((2, 3, 1), torch.int32, r"input 'ages_BL' is float32 \(2, 3, 1\)"),
        ((2, 3), torch.int64, r"input 'codes_BL' is int64 \(2, 3\), expected int32 \(B, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    file: Path, ages: tuple[int, ...], codes: torch.dtype, message: str
) -> None:
    with pytest.raises(TowerlineError, match=f"sum.onnx: {message}"):
        OnnxNetwork(file)(Read(torch.rand(ages), torch.ones(2, 3, dtype=codes)))


def test_an_input_that_is_no_field_is_named(file: Path, planted: Planted, random_retrieval: RetrievalModel) -> None:
    rows = read_examples(planted.folder)[:2]
    users = encode_users(rows, random_retrieval.vocabulary, 3)
    with pytest.raises(TowerlineError, match=r"sum.onnx has an input 'ages_BL' .* and UserBatch only history_BL, "):
        OnnxNetwork(file)(users)


@pytest.mark.parametrize("content", [None, b"", b"no network"])
def test_a_file_that_is_no_network_is_refused_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TowerlineError, match=r"broken.onnx cannot be loaded .*; export the model again"):
        OnnxNetwork(path)


def test_every_field_names_its_axes() -> None:
    """By which the exporter knows the free ones. What the ranker reads holds what the user tower reads."""
    names = {field.name for kind in (UserBatch, RankerInputs) for field in dataclasses.fields(kind)} - {"users"}
    for name in names:
        axes = name.rpartition("_")[2]
        free = _free_axes(name, torch.zeros([2] * len(axes)))
        assert list(free) == [axis for axis, letter in enumerate(axes) if letter in "BK"]
        with pytest.raises(ValueError, match=f"{name} has 9 axes; its name must end in a letter for each"):
            _free_axes(name, torch.zeros([1] * 9))


def test_tensors_of_nested_dataclasses_are_found_and_replaced() -> None:
    inner = Read(torch.zeros(1, 3), torch.zeros(1, 3))
    outer = Outer(inner, torch.ones(2))
    assert list(tensors_of(outer)) == ["ages_BL", "codes_BL", "rest_B"]
    changed = with_tensors(outer, {"codes_BL": torch.full((1, 3), 7.0)})
    assert changed.read.codes_BL.tolist() == [[7.0] * 3]
    assert changed.read.ages_BL is inner.ages_BL
    assert changed.read.unused_B is None
    assert inner.codes_BL.tolist() == [[0.0] * 3]
