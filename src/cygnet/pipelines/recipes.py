"""How models distilled to few steps are sampled: solver, steps, shift and guidance that belong together.

The weights are not part of a recipe. With weights that were not distilled so few steps give a blur.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cygnet.errors import RequestError
from cygnet.types import SolverName


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """One way of sampling; the fields are those of a request. They decide the noise levels, as for any request."""

    solver: SolverName
    num_steps: int
    shift: float
    guidance_scale: float = 1.0


RECIPES: Mapping[str, FewSteps] = {
    # ModelTC/LightX2V: levels 1000, 750, 500, 250 of a table shifted by 5; a plain Euler step between them.
    "lightx2v": FewSteps(solver="euler", num_steps=4, shift=5.0),
    # guandeh17/Self-Forcing: the same levels, with fresh noise at each.
    "self-forcing": FewSteps(solver="renoise", num_steps=4, shift=5.0),
}
"""By the name that users know. CausVid samples as Self-Forcing does."""


def recipe(name: object) -> FewSteps:
    """The recipe of that name; raises :class:`~cygnet.errors.RequestError`, listing the names."""
    if not isinstance(name, str) or name not in RECIPES:
        allowed = ", ".join(f'"{known}"' for known in RECIPES)
        raise RequestError(f"recipe is {str(name)[:80]!r}; choose one of {allowed}", field="recipe")
    return RECIPES[name]
