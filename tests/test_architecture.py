"""The layers of cygnet and the one direction of their imports.

The table is the architecture. To add an arrow, change it here and say why in the commit; an import that needs an arrow
upwards wants a callback or a protocol in ``types`` instead.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "cygnet"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "ops": set(),
    "solvers": set(),
    "media": set(),
    "models": {"ops"},
    # Eight-bit files are widened by the function that widens eight-bit layers.
    "checkpoints": {"models", "ops"},
    "runtime": {"models", "ops"},
    "pipelines": {"models", "solvers"},
    "assembly": {"checkpoints", "runtime", "models", "pipelines", "ops"},
    # A plan runs the code of the stages over shapes, and asks the video encoder how fast it is.
    "planning": {"assembly", "checkpoints", "runtime", "models", "pipelines", "solvers", "media"},
    "api": {"assembly", "planning", "pipelines", "solvers", "media", "models", "checkpoints"},
    # Sample videos are made as users make them, with the same receipts.
    # A plan of a training is made for the same machines, in the same words, as one of a video.
    "training": {
        "api",
        "planning",
        "assembly",
        "checkpoints",
        "runtime",
        "pipelines",
        "solvers",
        "models",
        "media",
        "ops",
    },
    "graph": set(),
    # Nodes handle the networks themselves: they name their types and the scale of their latents.
    "nodes": {"graph", "assembly", "pipelines", "solvers", "media", "models"},
    # What clients upload is judged and written by the reader of pictures and the writer of files that all share.
    "server": {"graph", "media"},
}
"""What each layer may import besides itself, ``errors`` and ``types``."""

OUTERMOST = {"cli", "__init__", "__main__"}
"""May import every layer, but only inside functions: starting the command must not load torch."""

WITHOUT_TORCH = {"errors", "types", "graph", "server", *OUTERMOST}
"""Layers that import torch nowhere, or (types) for annotations alone."""


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of everything that ``tree``, a module in ``package``, imports anywhere, by statement or call."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parts, *([module] if module else [])])
                yield from (f"{base}.{name.name}" for name in names)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                if called in ("import_module", "__import__"):
                    yield name


def cygnet_layers(tree: ast.AST, package: str) -> set[str]:
    names = (name.split(".") for name in imported_modules(tree, package))
    return {parts[1] for parts in names if parts[0] == "cygnet" and len(parts) > 1}


def imports_torch(tree: ast.AST, package: str) -> bool:
    return any(name.split(".")[0] == "torch" for name in imported_modules(tree, package))


def package_of(path: Path) -> str:
    return ".".join(["cygnet", *path.relative_to(PACKAGE).parent.parts])


def at_import_time(tree: ast.Module) -> ast.Module:
    """The module without the bodies of functions and of ``if TYPE_CHECKING``, which importing it does not run."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return [self.visit(statement) for statement in node.orelse]
            return self.generic_visit(node)

    return Strip().visit(tree)  # type: ignore[no-any-return]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_every_layer_is_in_the_table() -> None:
    unknown = {layer_of(path) for path in source_files()} - set(MAY_IMPORT) - OUTERMOST
    assert not unknown, f"add {sorted(unknown)} to the table, with what it may import"


def test_the_table_has_no_cycle() -> None:
    settled: set[str] = set()
    while remaining := set(MAY_IMPORT) - settled:
        ready = {layer for layer in remaining if MAY_IMPORT[layer] <= settled}
        assert ready, f"these layers import each other: {sorted(remaining)}"
        settled |= ready


@pytest.mark.parametrize("layer", sorted(MAY_IMPORT))
def test_a_layer_imports_only_what_the_table_allows(layer: str) -> None:
    allowed = MAY_IMPORT[layer] | {layer} | ({"errors", "types"} if layer not in ("errors", "types") else set())
    wrong = {
        str(path.relative_to(PACKAGE)): sorted(above)
        for path in source_files()
        if layer_of(path) == layer and (above := cygnet_layers(parse(path), package_of(path)) - allowed)
    }
    assert not wrong, f"{layer} may import {sorted(allowed)}, but {wrong}"


def test_the_outermost_ring_loads_layers_only_inside_functions() -> None:
    wrong = {
        str(path.relative_to(PACKAGE)): sorted(loaded)
        for path in source_files()
        if layer_of(path) in OUTERMOST
        and (loaded := cygnet_layers(at_import_time(parse(path)), package_of(path)) - {"cli", "errors", "types"})
    }
    assert not wrong, f"import these inside the function that needs them: {wrong}"


def test_layers_without_torch_do_not_import_it() -> None:
    wrong = [
        str(path.relative_to(PACKAGE))
        for path in source_files()
        if layer_of(path) in WITHOUT_TORCH
        and any(
            name.split(".")[0] == "torch" for name in imported_modules(at_import_time(parse(path)), package_of(path))
        )
    ]
    assert not wrong


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_importing_cygnet_does_not_import_torch() -> None:
    heavy = "{'torch', 'numpy', 'av', 'PIL', 'tokenizers', 'sentencepiece'}"
    done = run_python(f"import cygnet, cygnet.errors, cygnet.types, sys; print(sorted({heavy} & set(sys.modules)))")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_every_module_can_be_imported_and_says_nothing() -> None:
    modules = [
        ".".join(["cygnet", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in source_files()
        if path.name != "__main__.py"
    ]
    done = run_python(f"import importlib\nfor name in {modules}: importlib.import_module(name)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "statement",
    [
        "import cygnet.server.app",
        "from cygnet.server.app import App",
        "from cygnet import server",
        "def f():\n    from cygnet.server import app",
        "if TYPE_CHECKING:\n    import cygnet.server",
        "from ..server import app",
        "from .. import server",
        "importlib.import_module('cygnet.server.app')",
        "__import__('cygnet.server')",
    ],
)
def test_no_way_of_importing_escapes_the_check(statement: str) -> None:
    assert cygnet_layers(ast.parse(statement), "cygnet.ops") == {"server"}


def test_imports_inside_functions_and_for_typing_are_told_from_those_at_import_time() -> None:
    tree = ast.parse(
        "import cygnet.ops\n"
        "if TYPE_CHECKING:\n    import cygnet.media\nelse:\n    import cygnet.solvers\n"
        "class A:\n    def f(self):\n        import cygnet.server\n"
        "async def g():\n    import cygnet.server\n"
    )
    assert cygnet_layers(at_import_time(tree), "cygnet") == {"ops", "solvers"}
    assert imports_torch(ast.parse("from torch import nn"), "cygnet")
    assert not imports_torch(at_import_time(ast.parse("def f():\n    import torch")), "cygnet")
