"""Run a validated prompt: what is needed, in order, each node once, nothing that is known already.

Terms: a node's *sources* are the nodes that its links lead to. A *lazy* input's source runs only if the node asks for
it. An *expanded* node is replaced by a small prompt of its own making and takes its values from there.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cygnet.errors import Cancelled, by_signal, out_of_memory, text_of
from cygnet.graph.cache import Cache, Kept, key_of
from cygnet.graph.context import Context, running
from cygnet.graph.contract import NodeClass
from cygnet.graph.convert import Prompt
from cygnet.graph.dynamic_prompt import Described, DynamicPrompt
from cygnet.graph.events import (
    JobEnded,
    JobStarted,
    NodeFailed,
    NodeFinished,
    NodesCached,
    NodeStarted,
    Place,
    Sink,
)
from cygnet.graph.results import ExecutionBlocker, Result, parse_result, slices
from cygnet.graph.scheduled import Scheduled, hidden, leads, nested
from cygnet.graph.schema import NodeType
from cygnet.graph.traces import trace_of
from cygnet.types import CancelToken

Values = list[list[Any]]
"""Per output of a node the list of its values."""
_Task = asyncio.Task[list[Result] | BaseException]
"""What comes of an async node."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run: a validated prompt and the output nodes asked for."""

    prompt: Prompt
    outputs: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """``extra_data`` of the submission; nodes may ask for its ``extra_pnginfo``."""
    id: str = ""


_OUT_OF_MEMORY = (
    "\nMemory did not suffice. All models and kept results were let go; ask for a smaller size or fewer frames, "
    "decode with VAE Decode (Tiled), or load a model with fewer parameters or a smaller weight_dtype."
)

_EXIT = "the node asked for the whole program to end; it was stopped alone"
_CYCLE = "nodes of an expansion need one another's results"


class Executor:
    """Runs jobs one after another, keeping results and node objects between them. Not for several threads at once."""

    def __init__(
        self,
        classes: Mapping[str, NodeClass],
        cache: Cache | None = None,
        *,
        preview_method: str = "auto",
        relieve: Callable[[], None] = lambda: None,
    ) -> None:
        self.classes = classes
        self.cache = cache if cache is not None else Cache()
        self.preview_method = preview_method
        """How previews are made for a submission that does not say."""
        self.relieve = relieve
        """Called after a job that ran out of memory, when nothing of it is held here any more."""
        self._instances: dict[str, tuple[str, Any]] = {}

    def run(self, job: Job, sink: Sink, cancel: CancelToken | None = None) -> JobEnded:
        """Run to the end, whatever it is; failures are events and never raised. Returns the last event."""
        self._instances = {
            key: it for key, it in self._instances.items() if job.prompt.get(key, {}).get("class_type") == it[0]
        }
        asked = job.extra.get("preview_method")
        method = self.preview_method if asked in (None, "", "default") else str(asked)
        run = _Run(job, self.classes, self.cache, self._instances, sink, cancel or CancelToken(), method)
        ended = asyncio.run(run.to_the_end())
        self.cache.trim(run.keys.values())
        exhausted = run.exhausted
        del run  # and with it what its nodes gave
        if exhausted:
            self.cache.clear()
            self.relieve()
        return ended


class _Stop(Exception):
    """A node failed and the failure was reported."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


@dataclass
class _Run:
    job: Job
    classes: Mapping[str, NodeClass]
    cache: Cache
    instances: dict[str, tuple[str, Any]]
    sink: Sink
    cancel: CancelToken
    preview_method: str
    nodes: dict[str, Scheduled] = field(default_factory=dict)
    keys: dict[str, str | None] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    waiting: dict[str, Scheduled] = field(default_factory=dict)
    tasks: dict[_Task, Scheduled] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    now: Place | None = None
    """The node that was last set to work or heard of."""
    exhausted: bool = False
    """Whether memory did not suffice."""

    async def to_the_end(self) -> JobEnded:
        self.sink(JobStarted())
        ended = JobEnded("success")
        try:
            await self._all()
        except _Stop as stop:
            ended = JobEnded("error", stop.place, tuple(self.executed))
        except Cancelled:
            ended = JobEnded("interrupted", self.now, tuple(self.executed))
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        self.sink(ended)
        return ended

    async def _all(self) -> None:
        for key in self.job.prompt:
            kind = self.job.prompt[key]["class_type"]
            self._add(key, self.job.prompt[key], Place(node=key, display=key, real=key, class_type=kind))
        known = [key for key in self._needed() if self.cache.get(self._key(key))]
        self.sink(NodesCached(tuple(known)))
        for key in self.job.outputs:
            self._need(key)
        while self.waiting or self.tasks:
            self.cancel.check()
            node = self._next()
            if node is not None:
                await self._step(node)
            elif self.tasks:
                await self._some_task()
            else:
                self._stuck()

    # What is needed

    def _add(self, key: str, node: Mapping[str, Any], place: Place) -> None:
        with self._blaming(place):
            node_class = self.classes.get(kind := node["class_type"])
            if node_class is None:  # a job may wait while the pack of a node is removed
                raise ValueError(
                    f"Node {key} is of a type that is not installed: {kind}; install the pack that has it, and "
                    "run the job again"
                )
            self.nodes[key] = Scheduled(key, node_class.describe(), node_class, node, place)

    def _needed(self) -> list[str]:
        """Every node that the outputs lead to, lazily or not."""
        seen = dict.fromkeys(self.job.outputs)
        waiting = list(self.job.outputs)
        while waiting:
            for source, _ in self.nodes[waiting.pop()].links.values():
                if source not in seen:
                    seen[source] = None
                    waiting.append(source)
        return list(seen)

    def _need(self, key: str) -> None:
        """Put a node, and what it needs, on the list; one whose result is kept is done at once."""
        pending = [key]
        running_now = {node.key for node in self.tasks.values()}
        while pending:
            node = self.nodes[pending.pop()]
            if node.key in self.values or node.key in self.waiting or node.key in running_now:
                continue
            with self._blaming(node.place):
                if self._recall(node):
                    continue
            self.waiting[node.key] = node
            sources = {source for name, (source, _) in node.links.items() if name not in node.lazy}
            node.missing = {source for source in sources if source not in self.values}
            pending += sorted(node.missing)
        for node in self.waiting.values():
            node.missing -= self.values.keys()

    def _recall(self, node: Scheduled) -> bool:
        """Take a node's result from the cache, if it is there."""
        kept = self.cache.get(self._key(node.key))
        if kept is None:
            return False
        self.values[node.key] = [list(column) for column in kept.values]
        if kept.ui is not None:
            self.sink(NodeFinished(node.place, kept.ui, cached=True))
        return True

    def _key(self, key: str) -> str | None:
        """The cache key of a node, and on the way of everything behind it."""
        stack = [key]
        opened: set[str] = set()
        while stack:
            node = self.nodes[stack[-1]]
            # A link that a node is given as it is counts too: what it makes of it depends on what is behind.
            behind = [source for source, _ in node.all_links.values() if source not in self.keys]
            if node.key in self.keys:
                stack.pop()
            elif behind and node.key in opened:  # something behind it led back to it
                raise ValueError(f"{_CYCLE}: {node.key} is behind {behind[0]}, which is behind it")
            elif behind:
                opened.add(node.key)
                stack += behind
            else:
                with self._blaming(node.place):
                    self.keys[stack.pop()] = self._own_key(node)
        return self.keys[key]

    def _own_key(self, node: Scheduled) -> str | None:
        try:
            # Of what the executor fills in only the node's own id: the whole prompt changes with every job.
            own = {name: node.key if kind == "UNIQUE_ID" else None for name, kind in hidden(node.kind).items()}
            fingerprint = node.node_class.fingerprint({**node.constants, **dict.fromkeys(node.all_links), **own})
        except BaseException as error:  # a foreign hook may raise anything; then its results are not kept
            if by_signal(error):
                raise
            return None
        personal = not node.node_class.idempotent or "UNIQUE_ID" in hidden(node.kind).values()
        sources = {name: (self.keys[source], slot) for name, (source, slot) in node.all_links.items()}
        return key_of(node.kind.name, node.constants, sources, fingerprint, node.key if personal else "")

    # One after another

    def _next(self) -> Scheduled | None:
        """A node that can run now; outputs first, then what feeds one, so that results appear early."""
        ready = [node for node in self.waiting.values() if not node.missing]
        if len(ready) < 2:
            return ready[0] if ready else None
        feeds = {source for node in self.waiting.values() if node.kind.is_output for source in node.missing}
        return min(ready, key=lambda node: 0 if node.kind.is_output else 1 if node.key in feeds else 2)

    def _stuck(self) -> None:
        """Every node waits for another: an expansion needs what comes of the node that it replaces."""
        node = next((it for it in self.waiting.values() if it.expanded is not None), next(iter(self.waiting.values())))
        with self._blaming(node.place):
            raise ValueError(f"{_CYCLE}: {node.key} waits for {', '.join(sorted(node.missing))}")

    async def _step(self, node: Scheduled) -> None:
        self.now = node.place
        arguments: dict[str, list[Any]] = {}
        with self._blaming(node.place, arguments):
            if node.expanded is not None:
                self._finish(node, node.expanded)
                return
            arguments.update(self._arguments(node))
            if self._asks_for_more(node, arguments):
                return
            self.sink(NodeStarted(node.place))
            results, later = self._call(node, arguments)
            del self.waiting[node.key]
            if later is None:
                self._results(node, results)
            else:
                self.tasks[later] = node

    def _arguments(self, node: Scheduled) -> dict[str, list[Any]]:
        """Each input's list of values; lazy ones only if they are there."""
        found: dict[str, list[Any]] = {name: [value] for name, value in node.constants.items()}
        for name, (source, slot) in node.links.items():
            if source in self.values and (name not in node.lazy or name in node.asked):
                found[name] = self._value(source, slot)
        for name, kind in hidden(node.kind).items():
            found[name] = [self._hidden_value(node, kind)]
        return found

    def _value(self, source: str, slot: int) -> list[Any]:
        """The values of a node's output; nodes with any number of outputs may have given fewer than are linked."""
        given = self.values[source]
        if slot >= len(given):
            kind = self.nodes[source].kind.name
            raise IndexError(f"{kind} (node {source}) gave {len(given)} values, and number {slot} is asked for")
        return given[slot]

    def _hidden_value(self, node: Scheduled, kind: str) -> Any:
        match kind:
            case "PROMPT":
                return self.job.prompt
            case "DYNPROMPT":
                return DynamicPrompt(self.job.prompt, self._described, lambda: set(self.nodes))
            case "EXTRA_PNGINFO":
                return self.job.extra.get("extra_pnginfo")
            case "UNIQUE_ID":
                return node.key
            case _:
                return None  # credentials of foreign services are not handed out

    def _described(self, key: str) -> Described | None:
        node = self.nodes.get(key)
        return None if node is None else Described(node.given, node.place)

    def _asks_for_more(self, node: Scheduled, arguments: Mapping[str, list[Any]]) -> bool:
        open_lazy = frozenset(node.lazy - node.asked)
        if not open_lazy:
            return False
        wanted: set[str] = set()
        instance = self._instance(node)
        for values in slices(arguments):
            wanted |= set(node.node_class.wanted(instance, values, open_lazy)) & open_lazy
        if not wanted:
            return False
        node.asked |= wanted
        for name in wanted:
            source = node.links[name][0]
            self._need(source)
            if source not in self.values:
                node.missing.add(source)
        return True

    def _instance(self, node: Scheduled) -> Any:
        if node.key not in self.instances:
            self.instances[node.key] = (node.kind.name, node.node_class.instance())
        return self.instances[node.key][1]

    # Calls

    def _call(self, node: Scheduled, arguments: dict[str, list[Any]]) -> tuple[list[Result], _Task | None]:
        """Results, or what to wait for, in the same context. A call that is given a blocker gives blockers."""
        instance = self._instance(node)
        calls: list[Mapping[str, Any]]
        calls = [arguments] if node.node_class.input_is_list else list(slices(arguments))
        returned: list[tuple[Context, Any]] = []
        for number, values in enumerate(calls):
            context = Context(node.place, self.sink, self.cancel, self.preview_method, self.job.id, number)
            with running(context):
                blocker = _blocker(values)
                if blocker is not None:
                    answer: Any = self._blocked(node, blocker)
                else:
                    answer = node.node_class.call(instance, nested(node.kind, values))
            returned.append((context, answer))
        if any(inspect.isawaitable(answer) for _, answer in returned):
            return [], asyncio.create_task(_gather(returned, node.kind))
        return [_parsed(answer, node.kind) for _, answer in returned], None

    def _blocked(self, node: Scheduled, blocker: ExecutionBlocker) -> ExecutionBlocker:
        if blocker.message is not None and node.kind.is_output:
            failed = NodeFailed(node.place, blocker.message, "ExecutionBlocked", blocked=True)
            self.sink(failed)
        return ExecutionBlocker(None if node.kind.is_output else blocker.message)

    async def _some_task(self) -> None:
        done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
        for task in done:
            node = self.tasks.pop(task)
            self.now = node.place
            with self._blaming(node.place, self._arguments(node)):
                outcome = task.result()
                if isinstance(outcome, BaseException):
                    raise outcome
                self._results(node, outcome)

    @contextmanager
    def _blaming(self, place: Place, arguments: Mapping[str, list[Any]] | None = None) -> Iterator[None]:
        """Whatever is raised inside ends the job, not the executor, as a failure of the node at ``place``."""
        try:
            yield
        except (Cancelled, _Stop):
            raise
        except BaseException as error:  # foreign code may raise anything: panics of Rust extensions are no Exception
            if by_signal(error):
                raise
            self._fail(place, error, arguments or {})

    def _fail(self, place: Place, error: BaseException, arguments: Mapping[str, list[Any]]) -> None:
        name = type(error).__name__
        module = type(error).__module__
        self.exhausted = out_of_memory(error)
        told = f"{_EXIT} (SystemExit: {text_of(error)})" if isinstance(error, SystemExit) else text_of(error)
        failed = NodeFailed(
            place,
            f"{told}{_OUT_OF_MEMORY if self.exhausted else ''}",
            name if module == "builtins" else f"{module}.{name}",
            tuple(trace_of(error)),
            {key: [_shortened(value) for value in column] for key, column in arguments.items()},
            tuple(self.executed),
        )
        self.sink(failed)
        raise _Stop(place) from error

    # Results

    def _results(self, node: Scheduled, results: list[Result]) -> None:
        if any(result.expand is not None for result in results):
            self._expand(node, results)
        else:
            self._finish(node, results)

    def _expand(self, node: Scheduled, results: list[Result]) -> None:
        """Run the nodes that it returned, then take its values from them."""
        node.expanded = results
        node.ui = _merged(results)
        inner = self._inner(node, results)
        for key, it in inner.items():
            place = Place(
                node=key,
                display=self._shown_at(it.get("override_display_id"), node.place),
                real=node.place.real,
                parent=node.key,
                class_type=it["class_type"],
                real_type=node.place.marked[1],
            )
            self._add(key, it, place)
        for key in inner:
            for name, (source, _) in self.nodes[key].all_links.items():
                if source not in self.nodes:
                    raise ValueError(
                        f"{node.kind.name} (node {node.key}) expanded into {key} ({self.nodes[key].kind.name}), whose "
                        f"input {name} is linked to a node {source!r} that is not there"
                    )
        linked = {value[0] for result in results for value in result.values if self._is_link_of(value, result)}
        outputs = {key for key in inner if self.nodes[key].kind.is_output}
        for key in sorted(linked | outputs):
            self._need(key)
        node.missing = {key for key in linked | outputs if key not in self.values}
        self.waiting[node.key] = node

    def _inner(self, node: Scheduled, results: list[Result]) -> dict[str, Mapping[str, Any]]:
        """The nodes of an expansion; raises in words for one that cannot be run."""
        found: dict[str, Mapping[str, Any]] = {}
        maker = f"{node.kind.name} (node {node.key}) expanded into"
        for key, it in ((key, it) for result in results for key, it in (result.expand or {}).items()):
            kind = it.get("class_type") if isinstance(it, Mapping) else None
            if not isinstance(it, Mapping) or not isinstance(kind, str) or not isinstance(it.get("inputs"), Mapping):
                raise TypeError(f"{maker} {key!r}, which has no class_type and inputs")
            if kind not in self.classes:
                raise ValueError(
                    f"{maker} a node of type {kind[:100]!r} ({key}), which is not installed; install the pack that has "
                    f"it, or update the one of {node.kind.name}"
                )
            if key in self.nodes or key in found:
                raise ValueError(
                    f"{maker} a node {key!r}, and there is one of that id already; GraphBuilder of "
                    "comfy_execution.graph_utils makes ids that are not taken"
                )
            found[key] = it
        return found

    def _shown_at(self, override: object, place: Place) -> str:
        """Where clients show a node of an expansion: they know only those of the prompt."""
        if not override:
            return place.display
        known = self.nodes.get(str(override))
        return str(override) if known is None else known.place.display

    def _is_link_of(self, value: Any, result: Result) -> bool:
        """Whether a value of a result leads to a node: only those of expansions do."""
        return result.expand is not None and leads(value) and value[0] in self.nodes

    def _finish(self, node: Scheduled, results: list[Result]) -> None:
        columns: Values = [[] for _ in range(max([len(node.kind.outputs), *(len(it.values) for it in results)]))]
        for result in results:
            for slot, value in enumerate(result.values):
                column, output = columns[slot], node.kind.output(slot)
                if self._is_link_of(value, result):
                    column += self._value(value[0], value[1])
                elif output is not None and output.is_list and not isinstance(value, ExecutionBlocker):
                    column += list(value or ())
                else:
                    column.append(value)
        ui = node.ui if node.expanded is not None else _merged(results)
        self.sink(NodeFinished(node.place, ui))  # first: what cannot be told is not kept either
        self.waiting.pop(node.key, None)
        self.values[node.key] = columns
        self.executed.append(node.key)
        for other in self.waiting.values():
            other.missing.discard(node.key)
        if not any(isinstance(value, ExecutionBlocker) for column in columns for value in column):
            self.cache.put(self._key(node.key), Kept(columns, ui))


async def _gather(returned: list[tuple[Context, Any]], kind: NodeType) -> list[Result] | BaseException:
    found = []
    for context, answer in returned:
        with running(context):
            try:
                found.append(_parsed(await answer if inspect.isawaitable(answer) else answer, kind))
            except (SystemExit, KeyboardInterrupt) as error:
                if by_signal(error):
                    raise
                return error  # raised out of a task it would end the loop, and with it the executor
    return found


def _parsed(answer: Any, kind: NodeType) -> Result:
    return parse_result(answer, len(kind.outputs), kind.name, more=kind.further_outputs is not None)


def _blocker(values: Mapping[str, Any]) -> ExecutionBlocker | None:
    for value in values.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ExecutionBlocker):
                return one
    return None


def _merged(results: list[Result]) -> Mapping[str, Sequence[Any]] | None:
    """What all calls show, joined; None when nothing."""
    ui: dict[str, list[Any]] = {}
    for result in results:
        for name, shown in result.ui.items():
            ui.setdefault(name, []).extend(shown)
    return ui or None


def _shortened(value: Any) -> str:
    """Text of a value for an error report: tensors by their shape, long texts cut."""
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, Sequence):
            text = f"{type(value).__name__} {list(shape)} {getattr(value, 'dtype', '')}".strip()
        else:
            text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    except Exception:  # a foreign object, and a number with more digits than Python writes, may raise anything
        text = type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
