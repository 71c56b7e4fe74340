"""``cygnet run``: a workflow file without a browser."""

from __future__ import annotations

import itertools
import json as json_module
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cygnet.cli.interrupts import cancelled_by_interrupt
from cygnet.cli.options import Debug, Json, Places, Quiet, Switch
from cygnet.cli.output import Voice
from cygnet.cli.studio import (
    base_folder,
    child_host,
    child_options,
    folders_of,
    known_nodes,
    model_roots,
    pack_folders,
    running_studio,
    workshop,
)
from cygnet.errors import Cancelled, CygnetError, RequestError
from cygnet.types import Estimate, time_left

if TYPE_CHECKING:
    from cygnet.graph.schema import Input

_MEDIA = (".mp4", ".webm", ".webp", ".png")


class WorkflowFailed(CygnetError):
    """A node of a workflow failed."""

    code = "workflow_failed"


def run(
    workflow: Annotated[Path, Parameter(name="WORKFLOW")],
    /,
    *,
    set: Annotated[tuple[str, ...], Parameter(metavar="NODE.INPUT=VALUE")] = (),
    image: Annotated[tuple[str, ...], Parameter(metavar="NODE=FILE")] = (),
    print_prompt: Switch = False,
    base_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    output_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    model_paths: Places = (),
    device: Annotated[str, Parameter(metavar="NAME")] = "auto",
    disable_metadata: Switch = False,
    disable_all_custom_nodes: Switch = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Run a workflow file, as the page saves it or in API format, and print the paths of the results.

    Parameters
    ----------
    workflow
        A .json file, or a picture or video that a workflow made.
    set
        Change an input of a node, as in 6.text="a red ball"; the value is JSON, or text, and text alone for
        inputs of text. May be given again.
    image
        Give a LoadImage node a picture, as in 52=dog.png; it is copied to the input folder. May be given again.
    print_prompt
        Print the prompt that would be submitted, and stop.
    base_directory
        Folder of models, input and output. Default: cygnet's own folder of this user.
    output_directory
        Folder of results.
    device
        auto, cpu, cuda or cuda:N.
    disable_metadata
        Do not store prompt and workflow in results.
    disable_all_custom_nodes
        Load no packs of custom nodes.
    """
    from cygnet.graph.contract import describe_all
    from cygnet.graph.convert import is_prompt, is_workflow, to_prompt

    voice = Voice(as_json=json, quiet=quiet)
    document, kept = _read(workflow)
    base = base_folder(base_directory)
    shared = folders_of(base, {"input": None, "output": output_directory, "temp": None})
    if (address := running_studio(shared.temp)) is not None:
        voice.note(
            f"a studio runs on the same folder at {address}: this run computes beside it, so that both need memory; to "
            "have the workflow queued there, load it in its page"
        )
    roots = model_roots(base, model_paths)
    with previews_folder() as previews:
        folders = replace(shared, temp=previews)
        options = child_options(
            folders,
            roots,
            device=device,
            metadata=not disable_metadata,
            packs=pack_folders(base, roots),
            only_packs=() if disable_all_custom_nodes else None,
        )
        host = child_host(options)
        host.tasks_remaining = 1  # the one that is run here
        classes, packs = known_nodes(workshop(options), options, "run", host)
        for pack in packs:
            if pack.error:
                voice.note(f"pack {pack.name} is left out: {pack.error}")
        if is_workflow(document):
            prompt = to_prompt(document, describe_all(classes, lambda name, error: voice.note(f"{name}: {error}")))
        elif is_prompt(document):
            prompt = {key: {**node, "inputs": dict(node["inputs"])} for key, node in document.items()}
        else:
            raise RequestError(f"{workflow.name} is neither a workflow nor a prompt in API format", field="workflow")
        for change in set:
            _change(prompt, change, classes)
        if is_workflow(document):
            _choose_words(prompt, classes)
        for given in image:
            _give_picture(prompt, given, folders.input, classes)
        if print_prompt:
            sys.stdout.write(json_module.dumps(prompt, indent=1, ensure_ascii=True) + "\n")
            return 0
        extra = {"extra_pnginfo": {"workflow": kept}} if kept is not None else {}
        files = _execute(prompt, classes, extra, voice)
        paths = [str(folders.root(it["type"]) / it["subfolder"] / it["filename"]) for it in files]
        voice.result({"files": paths}, paths)
        return 0


@contextmanager
def previews_folder() -> Iterator[Path]:
    """A folder for the previews of this run alone: the studio empties its own when it starts and when it stops.

    It stays if anything is in it, for the system to remove.
    """
    folder = Path(tempfile.mkdtemp(prefix="cygnet-run-"))
    try:
        yield folder
    finally:
        with suppress(OSError):  # it holds something
            folder.rmdir()


def _read(path: Path) -> tuple[Any, Any]:
    """A workflow or a prompt, and the workflow to store in results if there is one.

    A picture or video gives the prompt that it holds, which is what it was made from.
    """
    from cygnet.graph.convert import is_workflow

    if not path.is_file():
        raise RequestError(f"there is no file {path.name}; give a workflow saved by the page", field="workflow")
    if path.suffix.lower() not in _MEDIA:
        document = _parsed(path.read_bytes(), path)
        return document, document if is_workflow(document) else None
    from cygnet.media.video_read import read_metadata

    told = read_metadata(path)
    prompt, workflow = (_parsed(told[name], path) if name in told else None for name in ("prompt", "workflow"))
    if prompt is None and workflow is None:
        raise RequestError(f"{path.name} holds no workflow; give a file that ComfyUI or cygnet made", field="workflow")
    return workflow if prompt is None else prompt, workflow


def _parsed(text: str | bytes, path: Path) -> Any:
    try:
        return json_module.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path.name} is not JSON that can be read ({error})", field="workflow") from error


def _choose_words(prompt: dict[str, Any], classes: Mapping[str, Any]) -> None:
    """Do to texts what the page does on submitting: drop comments, pick one of ``{a|b}``, fill prefixes."""
    from datetime import datetime

    from cygnet.graph.convert import expand_choices, expand_prefix

    now = datetime.now()
    for node in prompt.values():
        prefix = node["inputs"].get("filename_prefix")
        if isinstance(prefix, str):
            node["inputs"]["filename_prefix"] = expand_prefix(prefix, prompt, now)
        kind = classes[node["class_type"]].describe() if node["class_type"] in classes else None
        for it in kind.inputs if kind is not None else ():
            value = node["inputs"].get(it.name)
            if it.options.get("dynamicPrompts") and isinstance(value, str):
                node["inputs"][it.name] = expand_choices(value, random.choice)


def _change(prompt: dict[str, Any], text: str, classes: Mapping[str, Any]) -> None:
    where, equals, value = text.partition("=")
    node, dot, name = where.rpartition(".")
    if not equals or not dot:
        raise RequestError(f'--set is {text[:80]!r}; it must be like 6.text="a red ball"', field="set")
    changed = _node(prompt, node, "set")
    declared_input: Input | None = None
    if changed["class_type"] in classes:
        kind = classes[changed["class_type"]].describe()
        declared = [it.name for it in kind.inputs]
        declared_input = kind.input(name)
        if name.partition(".")[0] not in declared:
            raise RequestError(
                f"{changed['class_type']} ({node}) has no input {name[:80]!r}; it has: {', '.join(declared)}",
                field="set",
            )
    changed["inputs"][name] = _value(value, declared_input, prompt)


def _value(text: str, declared: Input | None, prompt: Mapping[str, Any]) -> Any:
    """JSON, or text. What an input of text is given stays text, unless it is quoted as JSON or a link to a node."""
    try:
        value = json_module.loads(text)
    except (ValueError, RecursionError):
        return text
    if declared is None or isinstance(value, str):
        return value
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt
    wants_text = declared.type == "STRING" or text in declared.choices
    return text if wants_text and not linked else value


def _node(prompt: dict[str, Any], key: str, field: str) -> dict[str, Any]:
    if key not in prompt:
        known = ", ".join(f"{it} ({node['class_type']})" for it, node in list(prompt.items())[:30])
        raise RequestError(f"there is no node {key!r} in the workflow; there are: {known}", field=field)
    node: dict[str, Any] = prompt[key]
    return node


def _give_picture(prompt: dict[str, Any], text: str, folder: Path, classes: Mapping[str, Any]) -> None:
    key, equals, name = text.partition("=")
    source = Path(name)
    if not equals or not source.is_file():
        raise RequestError(
            f"--image is {text[:80]!r}; it must be like 52=dog.png, with a file that exists", field="image"
        )
    node = _node(prompt, key, "image")
    kinds = {it: str(other["class_type"]) for it, other in prompt.items()}
    if kinds[key] in classes and not _takes_file(classes[kinds[key]]):
        takers = [f"{it} ({kind})" for it, kind in kinds.items() if kind in classes and _takes_file(classes[kind])]
        raise RequestError(
            f"node {key} ({kinds[key]}) has no field for a picture's name; in this workflow there "
            + (f"are: {', '.join(takers[:30])}" if takers else "is no node that has one, such as LoadImage"),
            field="image",
        )
    node["inputs"]["image"] = _copied(source, folder).name


def _takes_file(node_class: Any) -> bool:
    """Whether its input ``image`` is the name of a file."""
    declared = node_class.describe().input("image")
    return declared is not None and declared.has_widget


def _copied(source: Path, folder: Path) -> Path:
    """The file in a folder that others work in too: an equal one is used again, another of its name stays."""
    from cygnet.media.files import discard, new_part, output_error, publish

    data = source.read_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = new_part(folder)
    except OSError as error:
        raise output_error(error, folder / source.name) from error
    try:
        part.write_bytes(data)
        for number in itertools.count():
            target = folder / (f"{source.stem} ({number}){source.suffix}" if number else source.name)
            with suppress(FileExistsError):
                publish(part, target, overwrite=False)
                return target
            if target.is_file() and target.read_bytes() == data:
                return target
        raise AssertionError("a name is free")
    except OSError as error:
        raise output_error(error, folder / source.name) from error
    finally:
        discard(part)


def _execute(
    prompt: dict[str, Any], classes: Mapping[str, Any], extra: Mapping[str, Any], voice: Voice
) -> Sequence[Mapping[str, Any]]:
    """Judge and run; what was saved, in the order of saving."""
    from cygnet.graph.events import Event, NodeFailed, NodeFinished, NodeProgressed, NodeStarted
    from cygnet.graph.execute import Executor, Job
    from cygnet.graph.validate import validate
    from cygnet.nodes.lacking import of_comfyui

    missing = sorted({str(it["class_type"]) for it in prompt.values() if it["class_type"] not in classes})
    if missing:
        ours_not = of_comfyui(missing, (extra.get("extra_pnginfo") or {}).get("workflow"))
        told = [f"nodes of ComfyUI's own that cygnet does not have, and no pack brings: {', '.join(ours_not)}"]
        others = [it for it in missing if it not in ours_not]
        install = f"nodes that are not installed: {', '.join(others)}; see cygnet nodes install"
        told = [*(told if ours_not else ()), *([install] if others else ())]
        raise RequestError(f"the workflow cannot run: it has {', and '.join(told)}", field="workflow")
    verdict = validate(prompt, classes)
    problems = [
        f"node {key} ({node.class_type}): {it.message}: {it.details}"
        for key, node in verdict.nodes.items()
        for it in node.errors
    ]
    if verdict.error is not None:
        reason = "; ".join(problems[:5]) if problems else verdict.error.message
        raise RequestError(f"the workflow cannot run: {reason}", field="workflow")
    for problem in problems:
        voice.note(f"left out: {problem}")
    saved: list[Mapping[str, Any]] = []
    failures: list[NodeFailed] = []
    estimate = Estimate()

    def watch(event: Event) -> None:
        match event:
            case NodeStarted(place):
                voice.note(f"{place.class_type} ({place.node})")
            case NodeProgressed(place, value, total):
                left = estimate.update(place.node, value, total, time.monotonic())
                if value == total or value == 1 or value % 5 == 0:
                    told = time_left(left) if value < total else ""
                    voice.note(f"{place.class_type} ({place.node}): {value:g} of {total:g}{told}")
            case NodeFinished(ui=ui) if ui:
                saved.extend(it for it in ui.get("images", ()) if isinstance(it, Mapping))
            case NodeFailed() as failed:
                failures.append(failed)

    with cancelled_by_interrupt(voice.note) as cancel:
        ended = Executor(classes).run(Job(prompt=verdict.prompt, outputs=verdict.outputs, extra=extra), watch, cancel)
    if ended.state == "interrupted":
        raise Cancelled("stopped on request")
    if ended.state == "error":
        it = failures[-1]
        raise WorkflowFailed(f"node {it.place.node} ({it.place.class_type}) failed: {it.message}")
    return saved
