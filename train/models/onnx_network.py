"""A network in an ONNX file, as onnxruntime runs it. Its inputs are named after the fields of the torch one's."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as states
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cluster.errors import TowerlineError
from train.index import Floats

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Inputs = TypeVar("Inputs", bound=DataclassInstance)

PROVIDERS = ["CPUExecutionProvider"]
DTYPES = {
    "tensor(float)": "float32",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX type to that of the array which is fed."""
ONLY_ERRORS = 3
UNREADABLE = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
)


class TensorSpec(BaseModel):
    """An input or output of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Letters at its end are its axes: B users, K candidates."""
    dtype: str
    """As numpy spells it."""
    shape: tuple[int | str, ...]
    """A number where it is fixed, a letter where it is free; the same letter is the same size."""

    def admits(self, array: npt.NDArray[np.generic]) -> bool:
        """Whether an array is of this type and shape."""
        sizes = zip(self.shape, array.shape, strict=False)
        fits = all(isinstance(size, str) or size == found for size, found in sizes)
        return array.dtype == np.dtype(self.dtype) and array.ndim == len(self.shape) and fits

    def __str__(self) -> str:
        return f"{self.dtype} {_shape_text(self.shape)}"


class OnnxNetwork:
    """Called with the tensors of a dataclass; gives the one output. On the CPU, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Load the file. Raises TowerlineError if it is missing or no network that onnxruntime can run."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = ONLY_ERRORS
        self.path = path
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=PROVIDERS)
        except UNREADABLE as error:
            in_one_line = " ".join(str(error).split())
            raise TowerlineError(f"{path} cannot be loaded ({in_one_line}); export the model again") from error
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        (self.output,) = map(_spec, self._session.get_outputs())

    def __call__(self, inputs: Any) -> Floats:
        """The output for a dataclass of tensors.

        Raises:
            TowerlineError: the network has an input that is no field, or the field is of another type or shape.
        """
        feeds = {name: tensor.numpy() for name, tensor in tensors_of(inputs).items()}
        for spec in self.inputs:
            if spec.name not in feeds:
                raise TowerlineError(
                    f"{self.path.name} has an input {spec.name!r} ({spec}), and {type(inputs).__name__} only "
                    f"{', '.join(feeds)}; export the model again with this code"
                )
            if not spec.admits(feeds[spec.name]):
                found = feeds[spec.name]
                raise TowerlineError(
                    f"{self.path.name}: input {spec.name!r} is {found.dtype} {_shape_text(found.shape)}, expected "
                    f"{spec}; feed what the model's own vocabulary and configuration encode, or export it again"
                )
        output: Floats = self._session.run([self.output.name], {spec.name: feeds[spec.name] for spec in self.inputs})[0]
        return output


def axes_of(name: str) -> list[str]:
    """The letters at the end of a tensor's name, one for each of its axes."""
    return re.findall(r"\d|[A-Z]", name.rpartition("_")[2])


def tensors_of(inputs: Any) -> dict[str, Tensor]:
    """The tensors of a dataclass, and of the dataclasses in it, by the name of their field; None is left out."""
    found: dict[str, Tensor] = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if dataclasses.is_dataclass(value):
            found |= tensors_of(value)
        elif value is not None:
            found[field.name] = value
    return found


def with_tensors(inputs: "Inputs", tensors: Mapping[str, Tensor]) -> "Inputs":
    """The same dataclass with other tensors in the places that `tensors_of` names."""
    values = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    changed = {
        name: tensors.get(name, value) if isinstance(value, Tensor) or value is None else with_tensors(value, tensors)
        for name, value in values.items()
    }
    return dataclasses.replace(inputs, **changed)


def _spec(tensor: Any) -> TensorSpec:
    return TensorSpec(name=tensor.name, dtype=DTYPES[tensor.type], shape=tuple(tensor.shape))


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
