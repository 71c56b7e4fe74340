"""Where components are while they work: always in place, or only for the stage that uses them.

Both forms are a :class:`cygnet.types.Residency`, which is all that pipelines know.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from cygnet.errors import ModelNotFoundError, OutOfMemory, out_of_memory, text_of
from cygnet.runtime.memory import give_back_pieces
from cygnet.runtime.plan import Placement, Weights, smaller
from cygnet.types import ComponentName, Residency


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

    def shrink(self, name: ComponentName) -> str | None:
        """None: it has nowhere else to be."""
        return None


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

    def shrink(self, name: ComponentName) -> str | None:
        """None: this knows one way of bringing each component."""
        return None


class Placed:
    """Components held by a placement that can change: by the plan of a request, or when memory runs out."""

    def __init__(
        self,
        placement: Placement,
        weights: Mapping[ComponentName, Weights],
        build: Callable[[Placement], Residency],
    ) -> None:
        self._placement, self._weights, self._build = placement, dict(weights), build
        self._now: Residency | None = None
        self._stepped_down = False
        self.untold: list[str] = []
        """What became of loading, in words, until a run takes it to tell its user."""

    @property
    def placement(self) -> Placement:
        """How the components are held, or will be from their next use on."""
        return self._placement

    @property
    def held(self) -> Mapping[ComponentName, int]:
        """Bytes of each network that is there between requests; empty unless all stay resident and are loaded."""
        if not self._placement.resident or self._now is None:
            return {}
        return {part: self._placement.bytes(part, weights) for part, weights in self._weights.items()}

    @property
    def now(self) -> Residency:
        """What holds them; made when it is first asked for."""
        if self._now is None:
            self._now = self._build(self._placement)
        return self._now

    def prepare(self, *, fixed: bool = False) -> None:
        """Load what stays resident, so that no request has to wait for it.

        Where memory runs out, each network comes in for its stage from then on, and :attr:`untold` says so; or if the
        placement is ``fixed``, :class:`~cygnet.errors.OutOfMemory` is raised.
        """
        if not self._placement.resident:
            return
        try:
            self._now = self.now
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = text_of(error)[:200]
        # Only here, with the error and the frames that it refers to gone, can what was loaded be freed.
        self.clear()
        if fixed:
            raise OutOfMemory(
                f"out of memory while the networks were loaded ({why}), and offload=False keeps all of them there; "
                'leave it out, or give True, or "stream", which needs the least'
            )
        self._placement, self._stepped_down = replace(self._placement, resident=False), True
        self.untold.append(f"memory ran out while loading; it was done again in less: {self._placement.describe()}")

    def use(self, name: ComponentName) -> AbstractContextManager[torch.nn.Module]:
        """The component."""
        return self.now.use(name)

    def release(self, name: ComponentName) -> None:
        """The component is not needed again in this request."""
        if self._now is not None:
            self._now.release(name)

    def move(self, placement: Placement) -> None:
        """Hold the components in another way from their next use on; none may be in use.

        What is resident already only goes down, for going up would load it again; and so does what memory ran out for.
        """
        if self._placement.resident or self._stepped_down:
            placement = self._placement.lower(placement)
        if placement == self._placement:
            return
        self.clear()
        self._placement = placement

    def shrink(self, name: ComponentName) -> str | None:
        """Give back all memory, and hold ``name`` in less from now on; how, in words, or None if there is no way."""
        self.clear()
        step = smaller(self._placement, self._weights, name)
        if step is None:
            return None
        self._placement, self._stepped_down = step, True
        return step.describe()

    def clear(self) -> None:
        """Let go of every component; the next use brings it anew."""
        now, self._now = self._now, None
        for name in self._weights:
            if now is not None:
                now.release(name)
        del now
        release_unused()


def release_unused() -> None:
    """Give back the memory of networks that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_pieces()


def _absent(name: ComponentName) -> ModelNotFoundError:
    return ModelNotFoundError(f"this model was put together without its {name}; load it again with one")
