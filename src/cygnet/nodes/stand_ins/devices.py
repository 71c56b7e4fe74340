"""``comfy.model_management``: devices, their memory, and the stop button."""

from __future__ import annotations

import platform
from enum import Enum
from typing import Any

import torch

from cygnet.assembly import device_memory, release_unused
from cygnet.errors import Cancelled
from cygnet.graph.context import current, in_a_node
from cygnet.nodes.stand_ins.absent import absent
from cygnet.nodes.workshop import Workshop

_LACKING = (
    "load_models_gpu load_model_gpu LoadedModel current_loaded_models loaded_models free_memory unet_dtype "
    "unet_manual_cast vae_dtype text_encoder_dtype cast_to cast_to_device maximum_vram_for_weights "
    "minimum_inference_memory extra_reserved_memory use_more_memory"
)


class VRAMState(Enum):
    """How memory on the device is used; here it is always as much as there is."""

    DISABLED = 0
    NO_VRAM = 1
    LOW_VRAM = 2
    NORMAL_VRAM = 3
    HIGH_VRAM = 4
    SHARED = 5


class CPUState(Enum):
    """What the work is done on."""

    GPU = 0
    CPU = 1
    MPS = 2


def interrupt_current_processing(value: bool = True) -> None:
    """Stop the job of the running node, as the page's button does."""
    if not in_a_node():
        raise RuntimeError(
            "interrupt_current_processing is called outside of a running node, where no job is known; post to "
            "/api/interrupt instead"
        )
    if value:
        current().cancel.cancel()
    elif current().cancel.cancelled:
        raise RuntimeError("interrupt_current_processing(False) would take back a stop that was asked for")


def throw_exception_if_processing_interrupted() -> None:
    """End the node if its job is to stop."""
    current().cancel.check()


def names(shop: Workshop) -> dict[str, Any]:
    """What the module holds."""
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen if shop.device == "auto" else shop.device)
    cpu = torch.device("cpu")

    def memory(of: Any) -> dict[str, Any]:
        return device_memory(device if of is None else torch.device(of))

    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        told = memory(dev)
        free = told["vram_free"] + (told["torch_vram_free"] if told["type"] == "cuda" else 0)
        return (free, told["torch_vram_free"]) if torch_free_too else free

    def get_total_memory(dev: Any = None, torch_total_too: bool = False) -> Any:
        told = memory(dev)
        return (told["vram_total"], told["torch_vram_total"]) if torch_total_too else told["vram_total"]

    def asked_late(name: str) -> float:
        """Only for those who ask: it wakes the device up, in each process."""
        if name != "total_vram":
            raise AttributeError(f"comfy.model_management.{name} is not there in cygnet")
        return float(memory(device)["vram_total"]) / 2**20

    def halves_work(dev: Any = None, *arguments: Any, **named: Any) -> bool:
        return (device if dev is None else torch.device(dev)).type != "cpu"

    def bfloat16_works(dev: Any = None, *arguments: Any, **named: Any) -> bool:
        on = device if dev is None else torch.device(dev)
        return on.type != "cuda" or torch.cuda.is_bf16_supported()

    def is_type(kind: str) -> Any:
        return lambda dev: dev is not None and torch.device(dev).type == kind

    state = CPUState.CPU if device.type == "cpu" else CPUState.MPS if device.type == "mps" else CPUState.GPU
    on_the_device = (
        "get_torch_device", "text_encoder_device", "vae_device", "unet_inital_load_device",
    )  # fmt: skip
    on_the_processor = (
        "intermediate_device", "unet_offload_device", "text_encoder_offload_device", "vae_offload_device",
    )  # fmt: skip
    why = "networks are kept by cygnet itself"
    return {
        **absent("comfy.model_management", _LACKING, why),
        **dict.fromkeys(on_the_device, lambda *arguments, **named: device),
        **dict.fromkeys(on_the_processor, lambda *arguments, **named: cpu),
        "get_torch_device_name": lambda dev: memory(dev)["name"],
        "get_autocast_device": lambda dev: torch.device(dev).type,
        "get_free_memory": get_free_memory,
        "get_total_memory": get_total_memory,
        "__getattr__": asked_late,
        "total_ram": memory(cpu)["vram_total"] / 2**20,
        "soft_empty_cache": lambda force=False: release_unused(),
        "unload_all_models": shop.unload,
        "cleanup_models": lambda *arguments: release_unused(),
        "interrupt_current_processing": interrupt_current_processing,
        "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
        "processing_interrupted": lambda: current().cancel.cancelled,
        "InterruptProcessingException": Cancelled,
        "OOM_EXCEPTION": torch.OutOfMemoryError,
        "VRAMState": VRAMState,
        "CPUState": CPUState,
        "vram_state": VRAMState.DISABLED if state is CPUState.CPU else VRAMState.NORMAL_VRAM,
        "cpu_state": state,
        "cpu_mode": lambda: state is CPUState.CPU,
        "mps_mode": lambda: state is CPUState.MPS,
        "is_nvidia": lambda: device.type == "cuda" and torch.version.cuda is not None,
        "is_amd": lambda: device.type == "cuda" and torch.version.hip is not None,
        "is_intel_xpu": lambda: device.type == "xpu",
        "is_device_cpu": is_type("cpu"),
        "is_device_mps": is_type("mps"),
        "is_device_cuda": is_type("cuda"),
        "should_use_fp16": halves_work,
        "should_use_bf16": bfloat16_works,
        "xformers_enabled": lambda: False,
        "pytorch_attention_enabled": lambda: True,
        "directml_enabled": False,
        "dtype_size": lambda dtype: dtype.itemsize,
        "module_size": lambda module: sum(it.nbytes for it in module.state_dict().values()),
        "OS_NAME": platform.system(),
    }
