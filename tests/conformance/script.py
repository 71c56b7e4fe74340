"""A job through comfy-script: every node type becomes a typed function. Argument: URL."""

import sys

from comfy_script.runtime import *  # noqa: F403

load(sys.argv[1])  # noqa: F405
from comfy_script.runtime.nodes import *  # noqa: E402, F403

with Workflow(wait=True):  # noqa: F405
    model = UNETLoader("cygnet_tiny_t2v.safetensors", "default")  # noqa: F405
    clip = CLIPLoader("cygnet_tiny_umt5.safetensors", "wan")  # noqa: F405
    vae = VAELoader("cygnet_tiny_vae.safetensors")  # noqa: F405
    positive = CLIPTextEncode("a blue star grows on a grey background", clip)  # noqa: F405
    negative = CLIPTextEncode("", clip)  # noqa: F405
    latent = EmptyHunyuanLatentVideo(128, 128, 17, 1)  # noqa: F405
    model = ModelSamplingSD3(model, 3)  # noqa: F405
    latent = KSampler(model, 7, 2, 4, "uni_pc", "simple", positive, negative, latent, 1)  # noqa: F405
    pictures = SaveImage(VAEDecode(latent, vae), "script")  # noqa: F405
shown = pictures.wait().wait()  # first for the job, then for its files
assert [it.size for it in shown] == [(128, 128)] * 17, shown
