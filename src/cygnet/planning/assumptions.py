"""What a plan does not know of how a request will be computed, and so takes to be the plain way."""

from __future__ import annotations

from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import num_tokens
from cygnet.planning.machine import Machine
from cygnet.planning.subject import Subject
from cygnet.runtime.compile import missing_for_compiling, pays


def assumptions(subject: Subject, request: GenerateRequest, machine: Machine) -> list[str]:
    """In words, each thing that the run will do otherwise than the plan counts. Empty if all is measured or traced."""
    execution, found = subject.execution, []
    if _compiles(subject, request, machine):
        found.append(
            "blocks will run compiled, and are planned for uncompiled: steps take less, once compiling (half a minute "
            "or so) is done"
        )
    if _fuses(subject, machine):
        found.append(
            "the VAE's norms and sums will run compiled, and are planned for one by one: encoding and decoding take "
            "less, once compiling (some seconds) is done"
        )
    for dtype in sorted({str(it) for it in subject.dtypes.values() if machine.rates and not machine.rates.knows(it)}):
        name = dtype.removeprefix("torch.")
        found.append(f"{name} was not measured on this device: its times are those of float32, and it can take longer")
    if execution.attention not in ("auto", "torch"):
        found.append(f"attention {execution.attention} is planned for with the time and memory of the kernel of auto")
    if execution.fp8:
        found.append("products in fp8 are planned for in 16 bits: they take less time and, once loaded, less memory")
    if request.cache is not None and request.cache != "calibrate":
        found.append("steps that the cache will leave out are not known: all of them are counted")
    return found


def _compiles(subject: Subject, request: GenerateRequest, machine: Machine) -> bool:
    mode = subject.execution.compile
    device = machine.device.type
    if mode is False or (machine.here and missing_for_compiling(device) is not None):
        return False
    tokens = num_tokens(request.num_frames, request.width, request.height)
    return mode is True or pays(device, subject.dtypes["dit"], tokens, subject.dit.dim)


def _fuses(subject: Subject, machine: Machine) -> bool:
    device = machine.device.type
    compiles = not machine.here or missing_for_compiling(device) is None
    return subject.execution.compile is True and device == "cuda" and compiles
