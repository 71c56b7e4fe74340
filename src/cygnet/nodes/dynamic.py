"""Nodes whose inputs depend on what is linked or chosen, from the newer contract.

``*_AUTOGROW`` inputs arrive as one mapping of the names that are there; a dynamic combo as a mapping of its own choice
and the inputs that come with it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from cygnet.errors import RequestError
from cygnet.graph.results import ExecutionBlocker
from cygnet.graph.schema import AUTOGROW, DYNAMIC_COMBO, MATCH
from cygnet.nodes.images import METHODS, centre, scaled
from cygnet.nodes.latents import MOST
from cygnet.nodes.workshop import Node

MOST_POWER = 4000
MOST_BITS = 100_000
"""Of a whole number that a power makes; powers of powers would fill the memory."""
MOST_EXPRESSION = 10_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sum": lambda *values: sum(values[0] if len(values) == 1 and isinstance(values[0], list) else values),
    "min": min, "max": max, "abs": abs, "round": round, "pow": lambda base, power: _power(base, power),
    "sqrt": math.sqrt, "ceil": math.ceil, "floor": math.floor, "log": math.log, "log2": math.log2, "log10": math.log10,
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "int": int, "float": float,
}  # fmt: skip


def _matched(template: str, allowed: str, **options: Any) -> tuple[str, dict[str, Any]]:
    return (MATCH, {**options, "template": {"template_id": template, "allowed_types": allowed}})


class BatchImagesNode(Node):
    """Pictures one after another; all take the size of the first."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        template = {"input": {"required": {"image": ("IMAGE", {})}}, "prefix": "image", "min": 1, "max": 50}
        return {"required": {"images": (AUTOGROW, {"template": template})}}

    def run(self, images: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor]:
        given = list(images.values())
        height, width = given[0].shape[1:3]
        channels = max(it.shape[-1] for it in given)
        return (torch.cat([_with_alpha(_sized(it, width, height, "bilinear"), channels) for it in given]),)


class ComfySwitchNode(Node):
    """One of two values; only the one that is asked for is computed."""

    CATEGORY = "logic"
    RETURN_TYPES, RETURN_NAMES = (MATCH,), ("output",)
    OUTPUT_MATCHTYPES = ("switch",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        either = _matched("switch", "*", lazy=True)
        return {
            "required": {"switch": ("BOOLEAN", {"default": False})},
            "optional": {"on_false": either, "on_true": either},
        }

    def check_lazy_status(self, switch: bool, **given: Any) -> list[str]:
        name = "on_true" if switch else "on_false"
        return [name] if name in given and given[name] is None else []

    def run(self, switch: bool, on_false: Any = None, on_true: Any = None) -> tuple[Any]:
        value = on_true if switch else on_false
        return (ExecutionBlocker() if value is None else value,)


class ComfyMathExpression(Node):
    """A number from an expression over its inputs ``a``, ``b``, ...; also the list ``values`` of them all."""

    CATEGORY = "math"
    RETURN_TYPES, RETURN_NAMES = ("FLOAT", "INT", "BOOLEAN"), ("FLOAT", "INT", "BOOL")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = {"input": {"required": {"value": ("FLOAT,INT,BOOLEAN", {})}}, "names": list(_LETTERS), "min": 1}
        return {
            "required": {
                "expression": ("STRING", {"default": "a + b", "multiline": True}),
                "values": (AUTOGROW, {"template": number}),
            }
        }

    def run(self, expression: str, values: Mapping[str, float]) -> tuple[float, int, bool]:
        result = evaluate(expression, values)
        return float(result), int(result), result != 0


class ResizeImageMaskNode(Node):
    """Pictures or a mask to another size, by one of several rules."""

    CATEGORY = "image/transform"
    RETURN_TYPES, RETURN_NAMES = (MATCH,), ("resized",)
    OUTPUT_MATCHTYPES = ("input_type",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MOST, "step": 1}
        crop = (["disabled", "center"], {"default": "center"})
        least_side = {**side, "default": 1, "min": 1}
        rules: dict[str, dict[str, Any]] = {
            "scale dimensions": {"width": ("INT", side), "height": ("INT", side), "crop": crop},
            "scale by multiplier": {
                "multiplier": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            },
            "scale longer dimension": {"longer_size": ("INT", side)},
            "scale shorter dimension": {"shorter_size": ("INT", side)},
            "scale width": {"width": ("INT", side)},
            "scale height": {"height": ("INT", side)},
            "scale total pixels": {
                "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01}),
                "multiple": ("INT", least_side),
            },
            "match size": {"match": ("IMAGE,MASK", {}), "crop": crop},
            "scale to multiple": {"multiple": ("INT", {**least_side, "default": 8})},
        }
        options = [{"key": key, "inputs": {"required": inputs}} for key, inputs in rules.items()]
        return {
            "required": {
                "input": _matched("input_type", "IMAGE,MASK"),
                "resize_type": (DYNAMIC_COMBO, {"options": options}),
                "scale_method": (list(METHODS), {"default": "area"}),
            }
        }

    def run(self, input: torch.Tensor, resize_type: Mapping[str, Any], scale_method: str) -> tuple[torch.Tensor]:
        is_mask = input.ndim == 3
        images = input[..., None] if is_mask else input
        width, height, cropped = wanted_size(images.shape[2], images.shape[1], resize_type)
        if not (1 <= width <= MOST and 1 <= height <= MOST):
            raise RequestError(f"the size would be {width}x{height}; sides go from 1 to {MOST}", field="resize_type")
        if cropped:
            images = centre(images, width / height)
        resized = scaled(images, width, height, scale_method)
        return (resized[..., 0] if is_mask else resized,)


def wanted_size(width: int, height: int, rule: Mapping[str, Any]) -> tuple[int, int, bool]:
    """The size that a rule of :class:`ResizeImageMaskNode` asks for, and whether to cut to its aspect first.

    A side of 0 keeps the aspect.
    """
    ratio = width / height
    match rule["resize_type"]:
        case "scale dimensions":
            w, h = rule["width"], rule["height"]
            if not w and not h:
                return width, height, False
            return w or round(h * ratio), h or round(w / ratio), bool(w and h) and rule["crop"] == "center"
        case "scale by multiplier":
            return round(width * rule["multiplier"]), round(height * rule["multiplier"]), False
        case "scale longer dimension":
            factor = rule["longer_size"] / max(width, height)
        case "scale shorter dimension":
            factor = rule["shorter_size"] / min(width, height)
        case "scale width":
            factor = rule["width"] / width
        case "scale height":
            factor = rule["height"] / height
        case "scale total pixels":
            factor = math.sqrt(rule["megapixels"] * 2**20 / (width * height))
            w, h = (_multiple(side * factor, rule["multiple"]) for side in (width, height))
            return w, h, False
        case "match size":
            return rule["match"].shape[2], rule["match"].shape[1], rule["crop"] == "center"
        case "scale to multiple":
            w, h = (side // rule["multiple"] * rule["multiple"] for side in (width, height))
            return w, h, True
        case other:
            raise RequestError(f"resize_type is {other!r}, which is no rule of this node", field="resize_type")
    return round(width * factor), round(height * factor), False


def _multiple(size: float, of: int) -> int:
    return max(of, round(size / of) * of)


def _sized(images: torch.Tensor, width: int, height: int, method: str) -> torch.Tensor:
    return scaled(centre(images, width / height), width, height, method)


def _with_alpha(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Opaque where pictures without transparency stand beside ones that have it."""
    if images.shape[-1] == channels:
        return images
    return torch.cat((images, images.new_ones(*images.shape[:-1], channels - images.shape[-1])), dim=-1)


def _power(base: float, power: float) -> Any:
    if abs(power) > MOST_POWER:
        raise RequestError(f"a power of {power:g} is asked for; at most {MOST_POWER}", field="expression")
    if isinstance(base, int) and isinstance(power, int) and base.bit_length() * power > MOST_BITS:
        raise RequestError(f"a power makes a number of more than {MOST_BITS:,} bits", field="expression")
    return base**power


def evaluate(expression: str, values: Mapping[str, Any]) -> float:
    """The finite number that an expression of arithmetic, comparisons and the functions above gives.

    Raises :class:`~cygnet.errors.RequestError` for anything else.
    """
    from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

    if len(expression) > MOST_EXPRESSION:
        raise RequestError(f"the expression has more than {MOST_EXPRESSION:,} characters", field="expression")
    names = {**values, "values": list(values.values()), "True": True, "False": False}
    operators = {**DEFAULT_OPERATORS, ast.Pow: _power}
    calculator = EvalWithCompoundTypes(names=names, functions=dict(_FUNCTIONS), operators=operators)
    try:
        result = calculator.eval(expression)
    except RequestError:
        raise
    except (InvalidExpression, ArithmeticError, ValueError, TypeError, SyntaxError, RecursionError, KeyError) as error:
        raise RequestError(f"the expression {expression[:80]!r} has no value: {error}", field="expression") from error
    if not isinstance(result, int | float) or (isinstance(result, float) and not math.isfinite(result)):
        raise RequestError(f"the expression {expression[:80]!r} gives no finite number", field="expression")
    if isinstance(result, int) and result.bit_length() > 1000:
        raise RequestError(f"the expression {expression[:80]!r} gives a number that is too large", field="expression")
    return result
