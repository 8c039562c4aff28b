"""What the data of a network are called: its columns, its classes, its pictures. Ground floor."""

import dataclasses
import math
import re
from enum import StrEnum
from typing import Any, Self, cast

__all__ = ["Schema", "Task"]


class Task(StrEnum):
    """What is learnt: one of several classes, or numbers.

    Examples
    --------
    >>> import xnet
    >>> [str(task) for task in xnet.schema.Task]
    ['classification', 'regression']
    >>> xnet.schema.Schema(classes=("cat", "dog")).task == "classification"
    True
    """

    classification = "classification"
    regression = "regression"


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a network's inputs and outputs are called; its file keeps it.

    Attributes
    ----------
    features
        The names of the columns of x, in their order; None where they have none.
    labels
        The names of what is learnt: of one column for classes, of one or more for numbers. Empty
        where it has none, as in an NPZ file.
    classes
        The names of the classes, in the order of the outputs; None where numbers are learnt.
    ignored
        Columns of a table that are neither.
    shape
        Of one sample, where that is a picture: (H, W), or (H, W, 3).

    Examples
    --------
    >>> import xnet
    >>> schema = xnet.schema.Schema(("height", "width"), ("kind",), classes=("cat", "dog"))
    >>> schema.inputs, schema.outputs, str(schema.task)
    (2, ('cat', 'dog'), 'classification')
    >>> xnet.schema.Schema.of({"labels": ["price"], "shape": [8, 8]}).pixels
    True
    """

    features: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None

    @property
    def task(self) -> Task:
        """``"classification"`` or ``"regression"``."""
        return Task.regression if self.classes is None else Task.classification

    @property
    def inputs(self) -> int | None:
        """Features of a sample, if it is said."""
        if self.features is not None:
            return len(self.features)
        return None if self.shape is None else math.prod(self.shape)

    @property
    def pixels(self) -> bool:
        """Whether the features are pixels, of one scale: a picture's, or columns named so."""
        named = self.features and all(re.fullmatch(r"pixel_?\d+(x\d+)?", f) for f in self.features)
        return self.shape is not None or bool(named)

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """The names of the outputs, the classes or what is learnt; None where they have none."""
        return (self.labels or None) if self.classes is None else self.classes

    def facts(self) -> dict[str, Any]:
        """What JSON can hold of it, for `of`."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, ())}

    @classmethod
    def of(cls, facts: Any) -> Self:
        """The schema of these `facts`, from outside.

        Raises
        ------
        ValueError
            They are not what `facts` gives.
        """
        known = {field.name: int if field.name == "shape" else str for field in _FIELDS}
        given = cast("dict[str, Any]", facts) if isinstance(facts, dict) else {"": facts}
        if not given.keys() <= known.keys():
            raise ValueError(f"the schema is {given!r:.100}, expected a dict of {', '.join(known)}")
        for name, value in given.items():
            values = cast("list[Any]", value) if isinstance(value, list) else [None]
            if any(type(v) is not known[name] for v in values):
                kind = known[name].__name__
                raise ValueError(f"{name} is {value!r:.100}, expected a list of {kind}")
            if len(set(values)) < len(values) and name != "shape":
                raise ValueError(f"{name} names one twice: {values!r:.100}")
        if any(n < 1 for n in given.get("shape", ())):
            raise ValueError(f"shape is {given['shape']!r:.100}, expected lengths of at least 1")
        return cls(**{name: tuple(values) for name, values in given.items()})


_FIELDS = dataclasses.fields(Schema)
