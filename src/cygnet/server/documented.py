"""What the OpenAPI document says of routes whose bodies and parameters are read by hand.

The protocol's clients label their bodies in all ways, so no framework may judge them; see :mod:`cygnet.server.body`.
"""

from __future__ import annotations

from typing import Any

OBJECT = {"type": "object"}
PLACE = {
    "type": "object",
    "properties": {"place": {"type": "integer", "minimum": 1, "description": "Among those that wait; 1 is next"}},
}
SUBMISSION = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {
            "type": "object",
            "description": "The graph in API format: node id to class_type and inputs",
            "additionalProperties": {
                "type": "object",
                "required": ["class_type", "inputs"],
                "properties": {"class_type": {"type": "string"}, "inputs": {"type": "object"}},
            },
        },
        "client_id": {"type": "string", "description": "That of the socket that shall hear of the job"},
        "prompt_id": {"type": "string", "format": "uuid", "description": "Chosen by the client, for safe repetition"},
        "front": {"type": "boolean"},
        "number": {"type": "number", "description": "Place in the queue; lower is earlier"},
        "extra_data": {"type": "object"},
        "partial_execution_targets": {"type": "array", "items": {"type": "string"}},
    },
}
"""``POST /prompt``."""


def documented(
    *, path: tuple[str, ...] = (), query: tuple[str, ...] = (), body: dict[str, Any] | None = None, form: bool = False
) -> dict[str, Any]:
    """``openapi_extra`` of a route: texts in its path and query, and its JSON body, or that it takes a form."""
    text = {"type": "string"}
    found: dict[str, Any] = {
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": text} for name in path),
            *({"name": name, "in": "query", "required": False, "schema": text} for name in query),
        ]
    }
    if body is not None:
        found["requestBody"] = {"content": {"application/json": {"schema": body}}}
    if form:
        upload = {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "format": "binary"}},
        }
        found["requestBody"] = {"content": {"multipart/form-data": {"schema": upload}}}
    return found
