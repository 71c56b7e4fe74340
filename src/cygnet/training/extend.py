"""From a text-to-video transformer to an image-to-video one, with nothing lost at the start."""

from __future__ import annotations

from dataclasses import replace

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
    old_config = t2v.config
    same = replace(config, variant="t2v", in_channels=old_config.in_channels, image_dim=None, image_positions=None)
    if config.image_dim is None or same != old_config:
        raise ValueError("config must be t2v.config but for variant, in_channels and the image fields")
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
        else:
            value.copy_(old[name])
    return dit
