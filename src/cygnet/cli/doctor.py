"""``cygnet doctor``: what this machine can run, what is missing, and the remedy."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cygnet.cli.options import Debug, Json, Places
from cygnet.cli.output import Voice, error_line, gigabytes
from cygnet.errors import CygnetError

Status = Literal["ok", "note", "problem"]

PACKAGES = (
    "torch", "numpy", "av", "pillow", "safetensors", "huggingface_hub", "tokenizers", "sentencepiece", "ftfy",
    "pydantic", "cyclopts", "rich", "platformdirs", "psutil", "pyyaml",
)  # fmt: skip
CPU_FEATURES = ("amx_tile", "amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd", "bf16")
_MARKS: dict[Status, str] = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``remedy`` says what to do, where something is to be done."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def doctor(*, model_paths: Places = (), json: Json = False, debug: Debug = False) -> int:
    """Say what this machine can run, which kernels and codecs it has, what is missing, and the remedy.

    Returns 1 if something is broken, 0 if cygnet can make videos, however slowly.
    """
    findings = [finding for look in _LOOKS for finding in _guarded(look)]
    findings += list(_guarded(lambda: _model_places(model_paths)))
    problems = [finding for finding in findings if finding.status == "problem"]
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]}  {finding.name}: {error_line(finding.detail)}")
        if finding.remedy:
            lines.append(f"         -> {error_line(finding.remedy)}")
    lines.append(f"{len(problems)} problems" if problems else "cygnet can make videos on this machine")
    value = {"ok": not problems, "checks": [asdict(finding) for finding in findings]}
    Voice(as_json=json).result(value, lines)
    return 1 if problems else 0


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A look that fails is itself a finding: the other ones still help."""
    try:
        yield from look()
    except CygnetError as error:
        yield Finding(name=look.__name__.strip("_<>"), status="problem", detail=str(error), remedy="see the message")
    except Exception as error:  # whatever is broken here must not hide the rest of the report
        detail = f"{type(error).__name__}: {error}"
        yield Finding(name=look.__name__.strip("_<>"), status="problem", detail=detail, remedy="install cygnet again")


# Looks ---------------------------------------------------------------------------------------------------------------


def _software() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    yield Finding(
        name="cygnet", status="ok", detail=f"{version('cygnet')}, Python {platform.python_version()}, {system}"
    )
    found, absent = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            absent.append(package)
    yield Finding(name="packages", status="ok", detail=", ".join(found))
    if absent:
        yield Finding(
            name="missing packages",
            status="problem",
            detail=", ".join(absent),
            remedy=f"{Path(sys.executable).name} -m pip install {' '.join(absent)}",
        )
    encoding = locale.getpreferredencoding(False)
    if encoding.upper().replace("-", "") != "UTF8":
        yield Finding(
            name="locale",
            status="note",
            detail=f"text is {encoding}, not UTF-8; other letters are shown escaped",
            remedy="export LC_ALL=C.UTF-8",
        )


def _processor() -> Iterator[Finding]:
    import torch

    features = cpu_features()
    usable = available_cores()
    detail = f"{usable} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch uses "
    detail += f"{torch.get_num_threads()} threads; {', '.join(features) or 'no known features'}"
    yield Finding(name="processor", status="ok", detail=detail)
    if features and not {"amx_bf16", "avx512_bf16", "bf16"} & set(features):
        yield Finding(
            name="bfloat16",
            status="note",
            detail="the processor has no bfloat16 instructions; float32 is used on it, which takes twice the memory",
        )


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    limit = memory_limit()
    detail = f"{gigabytes(memory.available)} of {gigabytes(memory.total)} free"
    if limit is not None and limit < memory.total:
        detail += f"; this container may use {gigabytes(limit)}"
    usable = min(memory.total, limit or memory.total)
    if usable < 4e9:
        yield Finding(
            name="memory",
            status="note",
            detail=f"{detail}; enough for the tiny models only",
            remedy="t2v-1.3b wants about 16 GB, 14b models 40 GB or more",
        )
    else:
        yield Finding(name="memory", status="ok", detail=detail)


def _graphics() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        remedy = "check the driver with nvidia-smi" if built else "with an NVIDIA GPU, install torch's CUDA build"
        yield Finding(
            name="GPU",
            status="note",
            detail=f"none that torch {torch.__version__} can use; on the processor the tiny models are quick and 1.3B "
            "takes hours",
            remedy=remedy,
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        detail = f"{properties.name}, {gigabytes(free)} of {gigabytes(total)} free, "
        detail += f"compute {properties.major}.{properties.minor}"
        yield Finding(name=f"GPU {index}", status="ok", detail=detail)


def _kernels() -> Iterator[Finding]:
    import torch

    from cygnet.runtime.compile import find_compiler, missing_for_compiling

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    yield from attention_findings(device)
    if device.type == "cpu":
        yield from arithmetic_findings(device)
    missing = missing_for_compiling(device.type)
    if missing is None:
        detail = f"blocks are compiled with {find_compiler(device.type)}, where that pays"
        yield Finding(name="torch.compile", status="ok", detail=detail)
        return
    lost = "1.4 times as long on an H200" if device.type == "cuda" else "up to a tenth longer"
    yield Finding(
        name="torch.compile",
        status="note",
        detail=f"{missing.partition(';')[0]}, so the transformer's blocks run uncompiled: the same video to rounding, "
        f"and steps of long videos take {lost}",
        remedy="pip install triton" if "triton" in missing else "Debian: apt install g++",
    )


def arithmetic_findings(device: Any) -> Iterator[Finding]:
    """How a processor convolves and multiplies, where that is not torch's usual way everywhere."""
    import torch

    from cygnet.runtime.convolution import bands_pay
    from cygnet.runtime.products import onednn_pays

    kinds = [
        name for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)) if bands_pay(device, dtype)
    ]
    detail = (
        f"the VAE's by Winograd's form, in bands of rows ({', '.join(kinds)})" if kinds else "by torch's own kernels"
    )
    yield Finding(name="convolutions", status="ok", detail=detail)
    detail = "by oneDNN, which is faster here than MKL" if onednn_pays() else "by torch's own choice"
    yield Finding(name="float32 products", status="ok", detail=detail)


def attention_findings(device: Any) -> Iterator[Finding]:
    """Each attention kernel on a line: admitted, with how far it is from float64, or left out, and why."""
    import torch

    from cygnet.runtime.attention import verdicts

    names = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
    found: dict[str, dict[str, Any]] = {}
    for dtype, name in names.items():
        for verdict in verdicts(device, dtype, 128):
            found.setdefault(verdict.kernel, {})[name] = verdict
    absent = [kernel for kernel, each in found.items() if all(it.error is None for it in each.values())]
    for kernel, each in found.items():
        if kernel in absent:
            continue
        words = [f"{name} {_judgement(it)}" for name, it in each.items()]
        wrong = any(it.error is not None and not it.admitted for it in each.values())
        yield Finding(name=f"attention {kernel}", status="note" if wrong else "ok", detail=", ".join(words))
    for kernel in absent:
        reason = found[kernel]["bfloat16"].reason
        yield Finding(name=f"attention {kernel}", status="ok", detail=f"not used: {reason}")
    for name in names.values():
        if not any(each[name].admitted for kernel, each in found.items() if kernel in ("flash", "cudnn", "efficient")):
            yield Finding(
                name=f"attention, {name}",
                status="note",
                detail="no fused kernel: slow, and memory grows with the square of the length",
                remedy="a newer torch may have a faster kernel for this device",
            )


def _judgement(verdict: Any) -> str:
    if verdict.error is None:
        return "not there"
    return f"admitted ({verdict.error:.1g} off)" if verdict.admitted else f"left out ({verdict.reason})"


def _formats() -> Iterator[Finding]:
    from cygnet.media.video import FORMATS, unavailable_formats

    missing = unavailable_formats()
    working = [kind for kind in FORMATS if kind not in missing]
    yield Finding(name="video formats", status="ok" if working else "problem", detail=", ".join(working) or "none")
    for kind, reason in missing.items():
        status: Status = "problem" if kind == "mp4" else "note"
        yield Finding(
            name=f"format {kind}", status=status, detail=reason, remedy="pip install --force-reinstall av pillow"
        )


def _embedded() -> Iterator[Finding]:
    from cygnet.checkpoints.catalogue import ENTRIES, look_for

    for model in ENTRIES:
        if model.embedded is None:
            continue
        found = look_for(model.name)
        if found.complete:
            size = sum(path.stat().st_size for path in found.paths.values())
            yield Finding(name=model.name, status="ok", detail=f"embedded, {gigabytes(size)}")
        else:
            yield Finding(
                name=model.name,
                status="problem",
                detail=f"the package lacks {', '.join(found.missing)}",
                remedy="install cygnet again",
            )


def _disk() -> Iterator[Finding]:
    from cygnet.checkpoints.catalogue import default_cache

    cache = default_cache()
    existing = cache.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    detail = f"{cache}, {gigabytes(free)} free"
    if not os.access(existing, os.W_OK):
        yield Finding(
            name="download cache", status="note", detail=f"{detail}, but it may not be written to",
            remedy="set HF_HOME to a folder of your own",
        )  # fmt: skip
    elif free < 20e9:
        yield Finding(
            name="download cache", status="note", detail=f"{detail}; t2v-1.3b takes 18 GB",
            remedy="make room, or set HF_HOME to a larger disk",
        )  # fmt: skip
    else:
        yield Finding(name="download cache", status="ok", detail=detail)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        yield Finding(name="network", status="note", detail="HF_HUB_OFFLINE is set: nothing is fetched")


def _model_places(places: tuple[Path, ...]) -> Iterator[Finding]:
    from cygnet.checkpoints.catalogue import ENTRIES, look_for_all
    from cygnet.checkpoints.discovery import find_models, model_folders

    folders = model_folders(places)
    yield Finding(
        name="model folders",
        status="ok",
        detail=f"{len(folders)} folders, {len(find_models(folders))} weight files" if folders else "none found",
    )
    published = [entry for entry in ENTRIES if entry.embedded is None]
    here = [each.entry.name for each in look_for_all(published, places=places) if each.complete]
    yield Finding(name="published models here", status="ok", detail=", ".join(here) or "none; see cygnet models")


_LOOKS = (_software, _processor, _memory, _graphics, _kernels, _formats, _embedded, _disk)


# Facts ---------------------------------------------------------------------------------------------------------------


def cpu_features() -> list[str]:
    """Those of :data:`CPU_FEATURES` that the processor reports; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return [feature for feature in CPU_FEATURES if feature in flags]
    return []


def available_cores() -> int:
    """Cores that this process may use: by affinity, and by a container's share."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def memory_limit() -> int | None:
    """Bytes that a container may use, or None without a limit."""
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _first_line(place)
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
