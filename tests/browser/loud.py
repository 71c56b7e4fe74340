"""A pack with one node, and a workflow that needs it."""

from __future__ import annotations

PACK = """
class Shout:
    @classmethod
    def INPUT_TYPES(cls): return {"required": {"text": ("STRING", {})}}
    RETURN_TYPES = ("STRING",); FUNCTION = "run"; OUTPUT_NODE = True
    def run(self, text): return {"ui": {"text": [text.upper()]}, "result": (text,)}
NODE_CLASS_MAPPINGS = {"Shout": Shout}
"""
LOUD = {
    "version": 0.4,
    "last_node_id": 1,
    "last_link_id": 0,
    "links": [],
    "groups": [],
    "nodes": [
        {
            "id": 1, "type": "Shout", "pos": [300, 300], "size": [270, 80], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [{"name": "STRING", "type": "STRING", "links": None}],
            "properties": {"cnr_id": "shout-pack", "ver": "1.0.0"}, "widgets_values": ["hello"],
        }
    ],
}  # fmt: skip
"""A workflow whose node is in a pack that is not installed."""
