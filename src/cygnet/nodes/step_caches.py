"""Nodes that let steps be answered from earlier ones; see :mod:`cygnet.runtime.step_cache`. Lossy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cygnet.nodes.sampling import sigma_after
from cygnet.nodes.workshop import ModelHandle, Node
from cygnet.types import StepCaching


class EasyCache(Node):
    """Skips steps whose change, expected from those before, stays below a threshold."""

    CATEGORY = "advanced/debug/model"
    RETURN_TYPES = ("MODEL",)
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "reuse_threshold": ("FLOAT", {"default": 0.2, "min": 0.0, "max": 3.0, "step": 0.01}),
                "start_percent": ("FLOAT", {"default": 0.15, **share}),
                "end_percent": ("FLOAT", {"default": 0.95, **share}),
                "verbose": ("BOOLEAN", {"default": False}),
            }
        }

    def run(
        self,
        model: ModelHandle,
        reuse_threshold: float,
        start_percent: float,
        end_percent: float,
        verbose: bool = False,  # the log says how many steps were skipped, whatever this is
    ) -> tuple[ModelHandle]:
        between = (sigma_after(start_percent, model.shift), sigma_after(end_percent, model.shift))
        wish = StepCaching(policy="easy", threshold=reuse_threshold, first=0.0, sigmas=between)
        return (replace(model, caching=wish),)


class LazyCache(EasyCache):
    """The same rule under the name of a simpler one, whose inputs it shares."""
