"""``comfy_execution``: expansions, blockers, and what a node may know of the job that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cygnet.graph.builder import BuiltNode, GraphBuilder, add_graph_prefix, is_link
from cygnet.graph.context import current, in_a_node
from cygnet.graph.dynamic_prompt import DynamicPrompt, NodeNotFoundError
from cygnet.graph.results import ExecutionBlocker
from cygnet.nodes.stand_ins.absent import absent


class ExecutionContext(NamedTuple):
    """Where a node runs."""

    prompt_id: str
    node_id: str
    list_index: int | None


def get_executing_context() -> ExecutionContext | None:
    """The job, the node and the number of its call; None outside of a running node."""
    if not in_a_node():
        return None
    here = current()
    return ExecutionContext(here.job, here.place.node, here.call)


def modules() -> dict[str, Mapping[str, Any]]:
    """The modules by name."""
    scheduling = "cygnet orders nodes by itself"
    lacking = "PromptExecutor PromptQueue validate_prompt validate_inputs get_input_data IsChangedCache CacheSet"
    return {
        "execution": {**absent("execution", lacking, scheduling), "ExecutionBlocker": ExecutionBlocker},
        "comfy_execution": {"__path__": []},
        "comfy_execution.graph_utils": {
            "GraphBuilder": GraphBuilder,
            "Node": BuiltNode,
            "ExecutionBlocker": ExecutionBlocker,
            "add_graph_prefix": add_graph_prefix,
            "is_link": is_link,
        },
        "comfy_execution.graph": {
            **absent("comfy_execution.graph", "ExecutionList TopologicalSort get_input_info", scheduling),
            "ExecutionBlocker": ExecutionBlocker,
            "DynamicPrompt": DynamicPrompt,
            "NodeNotFoundError": NodeNotFoundError,
            "is_link": is_link,
        },
        "comfy_execution.utils": {
            **absent("comfy_execution.utils", "CurrentNodeContext", scheduling),
            "ExecutionContext": ExecutionContext,
            "get_executing_context": get_executing_context,
        },
    }
