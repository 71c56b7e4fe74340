"""Stored jobs in the shapes that clients read: queue items, history entries, and the job list of newer pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cygnet.server.store import JobRecord, JobState

Status = Literal["pending", "in_progress", "completed", "failed", "cancelled"]

STATES: dict[Status, tuple[JobState, ...]] = {
    "pending": ("pending",),
    "in_progress": ("running",),
    "completed": ("completed",),
    "failed": ("failed", "quarantined"),
    "cancelled": ("cancelled",),
}
"""The page's words for ours."""

_SHOWN = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"),
    "video": (".mp4", ".webm", ".mov", ".mkv"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".opus"),
    "3D": (".glb", ".gltf", ".obj"),
}
_SUFFIXES = tuple(suffix for suffixes in _SHOWN.values() for suffix in suffixes)
_LONGEST_TEXT = 1024


def queue_item(it: JobRecord) -> list[Any]:
    """An item of ``GET /queue``, and the ``prompt`` of a history entry."""
    job = it.submission
    return [it.number, it.id, job.prompt, job.extra, list(job.outputs)]


def history_entry(it: JobRecord) -> dict[str, Any]:
    """A value of ``GET /history``."""
    ending = it.ending
    return {
        "prompt": queue_item(it),
        "outputs": {} if ending is None else ending.outputs,
        "meta": {} if ending is None else ending.meta,
        "status": _status(it),
    }


def _status(it: JobRecord) -> dict[str, Any]:
    done = it.state == "completed"
    messages = [] if it.ending is None else [list(message) for message in it.ending.messages]
    return {"status_str": "success" if done else "error", "completed": done, "messages": messages}


def job_row(it: JobRecord) -> dict[str, Any]:
    """A job in the list. The page throws the whole list away if one row breaks its schema."""
    outputs = {} if it.ending is None else it.ending.outputs
    found = list(_outputs(outputs))
    shown = [(node, kind, one) for node, kind, one in found if _can_be_shown(kind, one)]
    return {
        "id": it.id,
        "status": next(word for word, states in STATES.items() if it.state in states),
        "priority": it.number,
        "create_time": it.created_ms,
        "execution_start_time": it.started_ms,
        "execution_end_time": it.ended_ms,
        "execution_error": _error(it),
        "outputs_count": len(found),
        "previewable_outputs_count": len(shown),
        "preview_output": _preview(found),
        "workflow_id": it.submission.workflow_id,
    }


def job_detail(it: JobRecord) -> dict[str, Any]:
    """``GET /jobs/{id}``: the row, everything it made, and what is needed to open its workflow."""
    return {
        **job_row(it),
        "update_time": it.ended_ms or it.started_ms or it.created_ms,
        "outputs": {} if it.ending is None else it.ending.outputs,
        "execution_status": None if it.state in ("pending", "running") else _status(it),
        "execution_meta": {} if it.ending is None else it.ending.meta,
        "workflow": {"prompt": it.submission.prompt, "extra_data": it.submission.extra},
    }


def _error(it: JobRecord) -> dict[str, Any] | None:
    if it.ending is None or it.ending.error is None:
        return None
    error = it.ending.error
    texts = {name: str(error.get(name, "")) for name in ("node_id", "node_type", "exception_message", "exception_type")}
    return {**error, **texts, "traceback": [str(line) for line in error.get("traceback", ())]}


def _outputs(outputs: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Node, kind and description of each thing that a job shows."""
    for node, ui in outputs.items():
        for kind, shown in ui.items():
            if kind == "animated" or not isinstance(shown, list):
                continue
            for one in shown:
                if isinstance(one, (Mapping, str)):
                    yield node, kind, one


def _can_be_shown(kind: str, one: Any) -> bool:
    if isinstance(one, str):
        return kind == "text"
    return str(one.get("filename", "")).lower().endswith(_SUFFIXES)


def _preview(found: list[tuple[str, str, Any]]) -> dict[str, Any] | None:
    """What stands for the job: a saved file before a temporary one, and a file before text."""

    def rank(it: tuple[str, str, Any]) -> int:
        if isinstance(it[2], str):
            return 2
        return 0 if it[2].get("type") == "output" else 1

    shown = sorted((it for it in found if _can_be_shown(it[1], it[2])), key=rank)
    if not shown:
        return None
    node, kind, one = shown[0]
    if isinstance(one, str):
        return {
            "nodeId": node,
            "mediaType": "text",
            "content": one[:_LONGEST_TEXT],
            "filename": "",
            "subfolder": "",
            "type": "temp",
        }
    return {**json.loads(json.dumps(one)), "nodeId": node, "mediaType": kind}
