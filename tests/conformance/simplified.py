"""A job through comfy_api_simplified: upload, queue, wait, fetch. Arguments: URL, prompt file, picture."""

import asyncio
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
# Its one-call form takes previews for results, on any server that shows some.
job, _ = asyncio.run(api.queue_prompt_and_wait(workflow))
outputs = api.get_history(job)[job]["outputs"]
made = outputs[workflow.get_node_id(saver)]["images"][0]
data = api.get_image(made["filename"], made["subfolder"], made["type"])
assert made["filename"].endswith(".mp4"), made
assert data[4:8] == b"ftyp", data[:16]
