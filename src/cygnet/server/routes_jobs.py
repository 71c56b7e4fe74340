"""Submitting, watching and stopping jobs: ``/prompt``, ``/queue``, ``/history``, ``/jobs`` and what belongs to them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cygnet.errors import RequestError
from cygnet.server.body import flag, names, read_json, text
from cygnet.server.documented import OBJECT, PLACE, SUBMISSION, documented
from cygnet.server.engine import Engine, Refused
from cygnet.server.jobs_view import STATES, history_entry, job_detail, job_row, queue_item
from cygnet.server.store import JobRecord, JobState

_LONGEST_PAGE = 1000
Count = Annotated[int, Query(ge=-(2**31), le=2**31)]
"""What a database takes; below zero it means that there is no bound."""


def jobs_router(engine: Engine) -> APIRouter:
    """The routes, without their ``/api`` prefix."""
    router = APIRouter(tags=["jobs"])
    store = engine.store

    @router.get("/prompt")
    async def exec_info() -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": store.remaining()}}

    @router.post("/prompt", openapi_extra=documented(body=SUBMISSION))
    async def submit(request: Request) -> JSONResponse:
        try:
            return JSONResponse(await engine.submit(await _body(request)))
        except Refused as refused:
            return JSONResponse(refused.body, refused.http_status, refused.headers)

    @router.get("/queue")
    async def queue() -> dict[str, Any]:
        return {
            "queue_running": [queue_item(it) for it in store.queue("running")],
            "queue_pending": [queue_item(it) for it in store.queue("pending")],
        }

    @router.post("/queue", openapi_extra=documented(body=OBJECT))
    async def change_queue(request: Request) -> Response:
        order = await _object(request)
        clear, chosen = flag(order, "clear"), names(order, "delete")
        if clear:
            engine.cancel()
        if chosen is not None:
            store.cancel(chosen)
            engine.tell_status()
        return Response()

    @router.post("/interrupt", openapi_extra=documented(body=OBJECT))
    async def interrupt(request: Request) -> Response:
        order = await _object(request)
        engine.interrupt(text(order, "prompt_id"))
        return Response()

    @router.post("/free", openapi_extra=documented(body=OBJECT))
    async def free(request: Request) -> Response:
        order = await _object(request)
        models, results = flag(order, "unload_models"), flag(order, "free_memory")
        if models or results:
            engine.free(results=results)
        return Response()

    @router.get("/history")
    async def history(max_items: Count | None = None, offset: Count | None = None) -> dict[str, Any]:
        return {it.id: history_entry(it) for it in store.history(max_items, offset)}

    @router.get("/history/{job_id}")
    async def history_of(job_id: str) -> dict[str, Any]:
        found = store.get(job_id)
        return {} if found is None or found.ended_ms is None else {found.id: history_entry(found)}

    @router.post("/history", openapi_extra=documented(body=OBJECT))
    async def change_history(request: Request) -> Response:
        order = await _object(request)
        clear, chosen = flag(order, "clear"), names(order, "delete")
        if clear:
            store.forget()
        if chosen is not None:
            store.forget(chosen)
        return Response()

    @router.get(
        "/jobs",
        openapi_extra=documented(query=("status", "workflow_id", "sort_by", "sort_order", "limit", "offset")),
    )
    async def jobs(request: Request) -> JSONResponse:
        try:
            return JSONResponse(_page(engine, dict(request.query_params)))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    @router.get("/jobs/{job_id}")
    async def job(job_id: str) -> JSONResponse:
        found = store.get(job_id)
        return JSONResponse({"error": "Job not found"}, 404) if found is None else JSONResponse(job_detail(found))

    @router.post("/jobs/cancel", openapi_extra=documented(body=OBJECT))
    async def cancel_jobs(request: Request) -> dict[str, bool]:
        return {"cancelled": engine.cancel(names(await _object(request), "job_ids") or [])}

    @router.post("/jobs/{job_id}/cancel")
    async def cancel_job(job_id: str) -> dict[str, bool]:
        return {"cancelled": engine.cancel([job_id])}

    @router.post("/jobs/{job_id}/move", openapi_extra=documented(body=PLACE))
    async def move_job(job_id: str, request: Request) -> JSONResponse:
        place = (await _object(request)).get("place", 1)
        if not isinstance(place, int) or isinstance(place, bool) or place < 1:
            return JSONResponse({"error": f"place is {place!r:.50}; it must be a whole number, and 1 is next"}, 400)
        if store.get(job_id) is None:
            return JSONResponse({"error": "Job not found"}, 404)
        try:
            return JSONResponse(job_row(engine.move(job_id, place)))
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 409)

    @router.post("/jobs/{job_id}/retry")
    async def retry_job(job_id: str) -> JSONResponse:
        if store.get(job_id) is None:
            return JSONResponse({"error": "Job not found"}, 404)
        try:
            return JSONResponse(job_row(engine.retry(job_id)))
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 409)

    return router


async def _body(request: Request) -> Any:
    try:
        return await read_json(request)
    except HTTPException as error:
        if error.status_code != 400:
            raise
        shape = {"type": "invalid_prompt", "message": error.detail, "details": "", "extra_info": {}}
        raise Refused(400, shape) from error


async def _object(request: Request) -> dict[str, Any]:
    """A JSON object, or an empty one where no body was sent."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return {}
    body = await read_json(request)
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return body


def _page(engine: Engine, query: dict[str, str]) -> dict[str, Any]:
    """``GET /jobs``; raises ValueError for a parameter that cannot be understood."""
    words = query.get("status", ",".join(STATES)).split(",")
    unknown = [it for it in words if it not in STATES]
    if unknown:
        raise ValueError(f"unknown status {unknown[0]!r}; use {', '.join(STATES)}")
    states: list[JobState] = [state for word, found in STATES.items() if word in words for state in found]
    by = _one_of(query, "sort_by", "created_at", "execution_duration")
    order = _one_of(query, "sort_order", "desc", "asc")
    limit, offset = _number(query, "limit", 1), _number(query, "offset", 0) or 0
    rows, total = engine.store.page(
        states,
        workflow_id=query.get("workflow_id"),
        by_duration=by == "execution_duration",
        ascending=order == "asc",
        limit=min(limit or _LONGEST_PAGE, _LONGEST_PAGE),
        offset=offset,
    )
    shown: list[JobRecord] = rows
    return {
        "jobs": [job_row(it) for it in shown],
        "pagination": {
            "offset": offset,
            "limit": limit or _LONGEST_PAGE,
            "total": total,
            "has_more": offset + len(shown) < total,
        },
    }


def _one_of(query: dict[str, str], name: str, *allowed: str) -> str:
    value = query.get(name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} is {value[:50]!r}; use {' or '.join(allowed)}")
    return value


def _number(query: dict[str, str], name: str, least: int) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < least or len(text) > 9:
        raise ValueError(f"{name} is {text[:50]!r}; it must be a whole number from {least} on")
    return int(text)
