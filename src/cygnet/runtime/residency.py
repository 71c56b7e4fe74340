"""Where components are while they work: always in place, or only for the stage that uses them.

Both forms are a :class:`cygnet.types.Residency`, which is all that pipelines know. Threads may share one: a component
goes when the last of them that uses it is done, and they take turns with one whose weights come and go as it runs.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
    in_turns: bool = False
    """Whether one thread at a time uses it: two would each have the other's weights read again."""


def loaded(load: Callable[[], torch.nn.Module]) -> Stage:
    """Loaded anew for each stage and forgotten after it: needs the least memory, costs a read of the files."""
    return Stage(load, lambda _: None)


def moved(module: torch.nn.Module, device: torch.device | str, home: torch.device | str = "cpu") -> Stage:
    """Kept at ``home`` and moved to ``device`` for its stage."""
    return Stage(lambda: module.to(device), lambda module: module.to(home))


class _Turn:
    """A lock that its thread may take again, and that any thread may give back: generators are closed by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        mine = threading.get_ident()
        if self._owner != mine:  # only this thread could have made it so
            self._lock.acquire()
            self._owner = mine
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._owner = None
                self._lock.release()


class StageResidency:
    """A component is in place from its first use until it is released, and no longer in use.

    Threads that use one component share it, or take turns where its stage says so: a whole use is then a turn, so it
    should not outlast a call; nothing that is handed to a caller bit by bit may be made within it.
    """

    def __init__(self, stages: Mapping[ComponentName, Stage]) -> None:
        self._stages = dict(stages)
        self._present: dict[ComponentName, torch.nn.Module] = {}
        self._users = dict.fromkeys(self._stages, 0)
        self._unwanted: set[ComponentName] = set()
        """Released while someone uses it; it goes with the last user."""
        self._turns = {name: _Turn() for name, stage in self._stages.items() if stage.in_turns}
        self._lock = threading.RLock()

    @property
    def present(self) -> tuple[ComponentName, ...]:
        """The components that are in place now."""
        return tuple(self._present)

    @contextmanager
    def use(self, name: ComponentName) -> Iterator[torch.nn.Module]:
        """The component, brought in if it is not in place."""
        if name not in self._stages:
            raise _absent(name)
        with self._turns[name].taken() if name in self._turns else nullcontext():
            module = self._enter(name)
            try:
                yield module
            finally:
                del module
                self._leave(name)

    def release(self, name: ComponentName) -> None:
        """Send the component away and give its memory back; nothing if it is not in place.

        One that is in use goes when that is over.
        """
        with self._lock:
            if self._users.get(name):
                self._unwanted.add(name)
                return
            module = self._present.pop(name, None)
            if module is None:
                return
            self._stages[name].send_away(module)
            del module
        release_unused()

    def shrink(self, name: ComponentName) -> str | None:
        """None: this knows one way of bringing each component."""
        return None

    def _enter(self, name: ComponentName) -> torch.nn.Module:
        with self._lock:  # no two bring it at once
            if name not in self._present:
                self._present[name] = self._stages[name].bring()
            self._users[name] += 1
            return self._present[name]

    def _leave(self, name: ComponentName) -> None:
        with self._lock:
            self._users[name] -= 1
            if self._users[name] or name not in self._unwanted:
                return
            self._unwanted.remove(name)
        self.release(name)


class Placed:
    """Components held by a placement that can change: by the plan of a request, or when memory runs out.

    What is in use while that changes stays as it is until the use is over.
    """

    def __init__(
        self,
        placement: Placement,
        weights: Mapping[ComponentName, Weights],
        build: Callable[[Placement], Residency],
    ) -> None:
        self._placement, self._weights, self._build = placement, dict(weights), build
        self._now: Residency | None = None
        self._stepped_down = False
        self._lock = threading.RLock()
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
        with self._lock:  # no two load it at once
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

    @contextmanager
    def use(self, name: ComponentName) -> Iterator[torch.nn.Module]:
        """The component."""
        now = self.now
        try:
            with ExitStack() as stack:
                yield stack.enter_context(now.use(name))
        finally:
            if now is not self._now:  # let go of meanwhile: nobody else will
                now.release(name)

    def release(self, name: ComponentName) -> None:
        """The component is not needed again in this request."""
        if (now := self._now) is not None:
            now.release(name)

    def move(self, placement: Placement) -> None:
        """Hold the components in another way from their next use on.

        What is resident already only goes down, for going up would load it again; and so does what memory ran out for.
        """
        with self._lock:
            if self._placement.resident or self._stepped_down:
                placement = self._placement.lower(placement)
            if placement == self._placement:
                return
            self.clear()
            self._placement = placement

    def shrink(self, name: ComponentName) -> str | None:
        """Give back all memory, and hold ``name`` in less from now on; how, in words, or None if there is no way."""
        with self._lock:
            self.clear()
            step = smaller(self._placement, self._weights, name)
            if step is None:
                return None
            self._placement, self._stepped_down = step, True
            return step.describe()

    def clear(self) -> None:
        """Let go of every component; the next use brings it anew."""
        with self._lock:
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
