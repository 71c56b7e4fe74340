"""Where components are while they work: always in place, or only for the stage that uses them.

Both forms are a :class:`cygnet.types.Residency`, which is all that pipelines know.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from cygnet.errors import ModelNotFoundError
from cygnet.types import ComponentName


class Resident:
    """Everything stays where it is."""

    def __init__(self, modules: Mapping[ComponentName, torch.nn.Module]) -> None:
        self._modules = dict(modules)

    def use(self, name: ComponentName) -> AbstractContextManager[torch.nn.Module]:
        """The component."""
        if name not in self._modules:
            raise _absent(name)
        return nullcontext(self._modules[name])

    def release(self, name: ComponentName) -> None:
        """Nothing: the component stays for the next request."""


@dataclass(frozen=True)
class Stage:
    """How one component is brought in and sent away again."""

    bring: Callable[[], torch.nn.Module]
    send_away: Callable[[torch.nn.Module], object]


def loaded(load: Callable[[], torch.nn.Module]) -> Stage:
    """Loaded anew for each stage and forgotten after it: needs the least memory, costs a read of the files."""
    return Stage(load, lambda _: None)


def moved(module: torch.nn.Module, device: torch.device | str, home: torch.device | str = "cpu") -> Stage:
    """Kept at ``home`` and moved to ``device`` for its stage."""
    return Stage(lambda: module.to(device), lambda module: module.to(home))


class StageResidency:
    """A component is in place from its first use until it is released."""

    def __init__(self, stages: Mapping[ComponentName, Stage]) -> None:
        self._stages = dict(stages)
        self._present: dict[ComponentName, torch.nn.Module] = {}

    @property
    def present(self) -> tuple[ComponentName, ...]:
        """The components that are in place now."""
        return tuple(self._present)

    @contextmanager
    def use(self, name: ComponentName) -> Iterator[torch.nn.Module]:
        """The component, brought in if it is not in place."""
        if name not in self._stages:
            raise _absent(name)
        if name not in self._present:
            self._present[name] = self._stages[name].bring()
        yield self._present[name]

    def release(self, name: ComponentName) -> None:
        """Send the component away and give its memory back; nothing if it is not in place."""
        module = self._present.pop(name, None)
        if module is None:
            return
        self._stages[name].send_away(module)
        del module
        release_unused()


def release_unused() -> None:
    """Give back the memory of networks that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _absent(name: ComponentName) -> ModelNotFoundError:
    return ModelNotFoundError(f"this model was put together without its {name}; load it again with one")
