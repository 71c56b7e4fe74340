"""Nodes of ComfyUI itself that cygnet does not have: no pack brings them, so nobody is sent to look for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cygnet.nodes.stand_ins.models import LACKING_NODES

_CORE = "comfy-core"
"""What the page writes into a workflow as the pack of ComfyUI's own nodes."""
_FURTHER = frozenset(
    (
        *("LoadAudio", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "PreviewAudio", "RecordAudio", "EmptyAudio"),
        *("TrimAudioDuration", "AudioConcat", "AudioMerge", "AudioAdjustVolume", "SplitAudioChannels"),
        *("AudioEncoderLoader", "AudioEncoderEncode", "WanHuMoImageToVideo", "WanSoundImageToVideo"),
        *("WanSoundImageToVideoExtend", "WanAnimateToVideo", "Wan22ImageToVideoLatent", "WanPhantomSubjectToVideo"),
        *("WanInfiniteTalkToVideo", "UpscaleModelLoader", "ImageUpscaleWithModel", "CLIPTextEncodeFlux"),
        *("FluxGuidance", "ModelSamplingFlux", "ModelSamplingAuraFlow", "EmptySD3LatentImage", "LatentBatch"),
        *("EmptyHunyuanLatentVideo", "EmptyLTXVLatentVideo", "DifferentialDiffusion", "Canny", "ImageBlend"),
    )
)


def of_comfyui(kinds: Iterable[str], workflow: object = None) -> list[str]:
    """Those of the ``kinds`` that are nodes of ComfyUI's own, by what is known here or what the workflow says."""
    known = _FURTHER | LACKING_NODES.keys() | set(_said(workflow))
    return sorted(known & set(kinds))


def _said(workflow: object) -> Iterator[str]:
    waiting = [workflow]
    while waiting:
        it: Any = waiting.pop()
        if isinstance(it, list):
            waiting += it
        elif isinstance(it, Mapping):
            told = it.get("properties")
            if isinstance(it.get("type"), str) and isinstance(told, Mapping) and told.get("cnr_id") == _CORE:
                yield it["type"]
            waiting += it.values()
