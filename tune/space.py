"""Search spaces: what each field of a model's configuration may become, checked against it before any trial starts.

A field is named by its place in the configuration, `learning_rate` or `two_tower.embedding_dim`.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cluster.errors import TowerlineError
from tune.dimensions import Choices, Dimension

Config = TypeVar("Config", bound=BaseModel)
Sample = dict[str, Any]
"""A value for every field that is searched, by dotted name."""

MOST_POINTS = 64
"""A range of whole numbers or steps is checked point by point up to so many, else at its ends."""
MOST_COMBINATIONS = 2048
"""So many combinations of values are checked against each other."""


def checked(space: Mapping[str, Dimension], config: BaseModel, fixed: Mapping[str, str]) -> dict[str, Dimension]:
    """The space with its numbers typed as the fields of `config` are.

    `fixed`: dotted names that no search may change, with the reason.

    Raises:
        TowerlineError: `config` does not admit the space; names the field and what is wrong with it.
    """
    typed: dict[str, Dimension] = {}
    for name, dimension in space.items():
        field = field_of(config, name)
        if name in fixed:
            raise TowerlineError(f"search space: {name} cannot be searched: {fixed[name]}; leave it out")
        typed[name] = _typed(name, dimension, field)
        _check_values(name, typed[name], field)
    values = {name: _tried(dimension) for name, dimension in typed.items()}
    for combination in itertools.islice(itertools.product(*values.values()), MOST_COMBINATIONS):
        sample = dict(zip(values, combination, strict=True))
        try:
            apply(config, sample)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise TowerlineError(f"search space: {_said(sample)} make no {type(config).__name__}: {problem}") from error
    return typed


def _typed(name: str, dimension: Dimension, field: FieldInfo) -> Dimension:
    """A range of a fractional field is one of fractions, also if its ends are written as whole numbers."""
    if isinstance(dimension, Choices):
        return dimension
    kinds = set(_kinds(field.annotation))
    if not {int, float} & kinds:
        raise TowerlineError(f"search space: {name} is no number and has no range; write {name} = {{choices = [...]}}")
    return dimension if int in kinds else dimension.of_fractions()


def _check_values(name: str, dimension: Dimension, field: FieldInfo) -> None:
    """Every value of the dimension, alone, against the type and the limits of the field."""
    annotation: Any = Annotated[(field.annotation, *field.metadata, FieldInfo())]
    kind: TypeAdapter[Any] = TypeAdapter(annotation)
    for value in _tried(dimension):
        try:
            kind.validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise TowerlineError(f"search space: {name} = {value!r}: {problem}") from error


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def _tried(dimension: Dimension) -> list[Any]:
    """The values that stand for all: every one if they are few, else the ends."""
    points = dimension.points()
    if isinstance(dimension, Choices):
        return dimension.points()
    return points if points is not None and len(points) <= MOST_POINTS else [dimension.low, dimension.high]


def _said(sample: Mapping[str, Any]) -> str:
    return " with ".join(f"{name} = {value!r}" for name, value in sample.items())


def field_of(config: BaseModel, name: str) -> FieldInfo:
    """The field that a dotted name means.

    Raises:
        TowerlineError: there is none, or it is a section.
    """
    here: Any = config
    *sections, last = name.split(".")
    for section in sections:
        here = getattr(here, section, None) if section in type(here).model_fields else None
        if not isinstance(here, BaseModel):
            raise _unknown(config, name)
    fields = type(here).model_fields
    if last not in fields or isinstance(getattr(here, last), BaseModel):
        raise _unknown(config, name)
    found: FieldInfo = fields[last]
    return found


def _unknown(config: BaseModel, name: str) -> TowerlineError:
    return TowerlineError(
        f"search space: {type(config).__name__} has no field {name!r} that could be searched; "
        f"there are: {', '.join(sorted(field_names(config)))}"
    )


def field_names(config: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that are no sections."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def around(space: Mapping[str, Dimension], config: BaseModel) -> dict[str, Dimension]:
    """The space in which a search from `config` goes on: widened where it can be to hold `config`."""
    here = sample_of(config, space)
    return {name: dimension.holding(here[name]) for name, dimension in space.items()}


def start(space: Mapping[str, Dimension], config: BaseModel) -> Sample:
    """The point of the space that is nearest to `config`: where a search begins."""
    here = sample_of(config, space)
    return {name: dimension.nearest(here[name]) for name, dimension in space.items()}


def grid(space: Mapping[str, Dimension], most: int) -> list[Sample]:
    """Every point of the space.

    Raises:
        TowerlineError: there are more than `most`, or more than can be counted.
    """
    points: dict[str, list[Any]] = {}
    for name, dimension in space.items():
        counted = dimension.points()
        if counted is None:
            raise TowerlineError(f"search space: {name} has no step, so no grid can be made; give a step or choices")
        points[name] = counted
    size = math.prod(map(len, points.values()))
    if size > most:
        raise TowerlineError(
            f"search space: the grid has {size} points, but num_trials is {most}; raise it to {size}, "
            'give fewer choices, or search with algorithm = "tpe"'
        )
    return [dict(zip(points, values, strict=True)) for values in itertools.product(*points.values())]


def sample_of(config: BaseModel, names: Mapping[str, Any]) -> Sample:
    """The values that `config` has for these dotted names."""
    sample: Sample = {}
    for name in names:
        here: Any = config
        for part in name.split("."):
            here = getattr(here, part)
        sample[name] = here
    return sample


def apply(config: Config, sample: Mapping[str, Any]) -> Config:
    """`config` with the values of a sample.

    Raises:
        ValidationError: the config does not admit a value of the sample.
    """
    values = config.model_dump()
    for name, value in sample.items():
        *sections, last = name.split(".")
        here = values
        for section in sections:
            here = here[section]
        here[last] = value
    return type(config).model_validate(values)
