"""A job through comfy_api_simplified: upload, queue, wait, fetch. Arguments: URL, prompt file, picture."""

import json
import sys
import tempfile

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

url, prompt, picture = sys.argv[1:]
with open(prompt) as file:
    graph = json.load(file)
for key, node in graph.items():
    node["_meta"] = {"title": f"{node['class_type']} {key}"}
saver = next(node["_meta"]["title"] for node in graph.values() if node["class_type"] == "SaveVideo")
with tempfile.NamedTemporaryFile("w", suffix=".json") as titled:
    json.dump(graph, titled)
    titled.flush()
    workflow = ComfyWorkflowWrapper(titled.name)
api = ComfyApiWrapper(url)
assert api.upload_image(picture)["name"]
sampler = next(node["_meta"]["title"] for node in graph.values() if node["class_type"] == "KSampler")
workflow.set_node_param(sampler, "seed", 5)
found = api.queue_and_wait_images(workflow, saver)
((name, data),) = found.items()
assert name.endswith(".mp4"), name
assert data[4:8] == b"ftyp", data[:16]
