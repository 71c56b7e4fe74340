// A job through @saintno/comfyui-sdk. Arguments: URL, prompt file.
import { readFileSync } from "node:fs";
import { CallWrapper, ComfyApi, PromptBuilder } from "@saintno/comfyui-sdk";

const [url, file] = process.argv.slice(2);
const graph = JSON.parse(readFileSync(file, "utf8"));
const keyOf = (type) => Object.keys(graph).find((key) => graph[key].class_type === type);
const api = new ComfyApi(url).init();
await api.waitForReady();
const builder = new PromptBuilder(graph, ["seed"], ["video"])
  .setInputNode("seed", `${keyOf("KSampler")}.inputs.seed`)
  .setOutputNode("video", keyOf("SaveVideo"))
  .input("seed", 11);
let moved = 0;
const result = await new Promise((resolve, reject) => {
  new CallWrapper(api, builder)
    .onProgress(() => (moved += 1))
    .onFinished(resolve)
    .onFailed(reject)
    .run();
});
const made = result.video.images[0];
if (!made.filename.endsWith(".mp4") || moved === 0) throw new Error(JSON.stringify({ made, moved }));
const answer = await fetch(api.getPathImage(made));
if (!answer.ok || answer.headers.get("content-type") !== "video/mp4") throw new Error(`${answer.status}`);
const stats = await api.getSystemStats();
if (!stats.system) throw new Error("no system_stats");
process.exit(0);
