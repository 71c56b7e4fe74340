"""From a text-to-video transformer to an image-to-video one, with nothing lost at the start."""

from __future__ import annotations

import torch
from torch import nn

from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT


@torch.no_grad()
def extend_to_images(t2v: DiT, config: DiTConfig) -> DiT:
    """An image variant that at first ignores its picture and gives exactly what ``t2v`` gives.

    The new input channels start at zero (technical report, arXiv 2503.20314); so do the values of the picture's
    attention, whose keys start as copies of the text's. ``config`` must equal ``t2v.config`` but for the image fields;
    anything else is a ValueError.
    """
    if config.image_dim is None or config.out_channels != t2v.config.out_channels:
        raise ValueError("config must be of an image variant with the same latents")
    dit = DiT(config)
    for module in dit.img_emb.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    old, new = t2v.state_dict(), dit.state_dict()
    for name, value in new.items():
        if name.startswith("img_emb."):
            continue
        if name == "patch_embedding.weight":
            value.zero_()
            value[:, : t2v.config.in_channels] = old[name]
        elif ".v_img." in name:
            value.zero_()
        elif "k_img" in name:
            value.copy_(old[name.replace("norm_k_img", "norm_k").replace("k_img", "k")])
        elif name in old and old[name].shape == value.shape:
            value.copy_(old[name])
        else:
            raise ValueError(f"{name} of the image variant has no counterpart of its shape in the text-to-video model")
    return dit
