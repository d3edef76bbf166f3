"""What the engine is told of a model that is not its own: one that a training job lends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lent:
    """How a model may be used that goes back to its owner, who changes its weights meanwhile.

    `whole`: every weight lies whole in this process, so that layers may be computed apart.
    `agreed` gives the first process's value to all that compute in step; None where one computes
    alone. `dtype` is what the model computes in, where that is not the dtype of its weights.
    """

    whole: bool = True
    agreed: Callable[[Any], Any] | None = None
    dtype: Any = None


OWN = Lent()
"""A model that was loaded for the engine and is its own."""
