"""What becomes of the flags that users of ComfyUI bring along to ``cygnet launch``.

Most mean the same here and are options of the verb itself. Of the others some are written differently (they are
translated), some say what is always so here (they are dropped, with a note), and the rest are refused in words: a flag
that is taken and does nothing would be a false promise.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

from cygnet.errors import RequestError

_PLACEMENT = "cygnet itself decides what stays on the device"
_DTYPE = "choose the type of the weights in the loader node (weight_dtype)"
_KERNEL = "cygnet takes the fastest attention that the machine has; cygnet doctor names it"
_FILES = "weights are always mapped, and read without running code"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--reserve-vram"), _PLACEMENT
    ),
    **dict.fromkeys(("--disable-smart-memory", "--async-offload", "--disable-async-offload"), _PLACEMENT),
    **dict.fromkeys(("--cuda-malloc", "--disable-cuda-malloc", "--force-non-blocking", "--cpu-vae"), _PLACEMENT),
    **dict.fromkeys(("--disable-pinned-memory", "--cache-ram"), _PLACEMENT),
    **dict.fromkeys(
        ("--force-fp32", "--force-fp16", "--fp32-unet", "--fp64-unet", "--bf16-unet", "--fp16-unet"), _DTYPE
    ),
    **dict.fromkeys(("--fp8_e4m3fn-unet", "--fp8_e5m2-unet", "--fp8_e8m0fnu-unet", "--supports-fp8-compute"), _DTYPE),
    **dict.fromkeys(("--fp16-vae", "--fp32-vae", "--bf16-vae", "--fp8_e4m3fn-text-enc", "--fp8_e5m2-text-enc"), _DTYPE),
    **dict.fromkeys(("--fp16-text-enc", "--fp32-text-enc", "--bf16-text-enc", "--force-channels-last"), _DTYPE),
    **dict.fromkeys(("--use-split-cross-attention", "--use-quad-cross-attention", "--use-sage-attention"), _KERNEL),
    **dict.fromkeys(
        ("--use-flash-attention", "--force-upcast-attention", "--dont-upcast-attention", "--fast"), _KERNEL
    ),
    **dict.fromkeys(("--mmap-torch-files", "--disable-mmap"), _FILES),
    **dict.fromkeys(
        ("--directml", "--oneapi-device-selector", "--disable-ipex-optimize"), "use --device cpu or cuda:N"
    ),
    "--tls-keyfile": "put a proxy that speaks TLS before the studio",
    "--tls-certfile": "put a proxy that speaks TLS before the studio",
    "--multi-user": "a studio has one user; start another with its own --base-directory and --port",
    "--front-end-version": "install comfyui-frontend-package of that version, or give its folder with --front-end-root",
    "--enable-manager-legacy-ui": "the page has a Manager of its own: use --enable-manager",
    "--disable-manager-ui": "leave --enable-manager away",
    "--deterministic": "one seed gives one video on one machine already",
    "--default-hashing-function": "uploads are always compared by SHA-256",
    "--log-stdout": "the log goes to stderr; join the two with 2>&1",
    "--dont-print-server": "use --verbose WARNING",
    "--quick-test-for-ci": "run cygnet doctor",
    "--database-url": "jobs are kept in the user folder; move it with --user-directory",
    "--comfy-api-base": "cygnet calls no nodes of a paid service",
    "--windows-standalone-build": "use --auto-launch",
    "--background": "let your shell or service manager put it there, as in: cygnet launch &",
}
SETTLED: Mapping[str, str] = {
    "--disable-auto-launch": "no browser is opened unless --auto-launch is given",
    "--disable-api-nodes": "there are no nodes of a paid service",
    "--disable-assets-autoscan": "nothing is scanned at start",
    "--enable-compress-response-body": "answers are always compressed",
    "--use-pytorch-cross-attention": "attention is PyTorch's",
    "--disable-xformers": "xformers is not used",
    "--cache-classic": "what the last graph made is kept",
}
EVERYWHERE = "0.0.0.0"


def understood(given: Sequence[str], note: Callable[[str], object]) -> list[str]:
    """The words behind ``cygnet launch`` with foreign ways of saying things put into ours.

    ``note`` hears of flags that change nothing. Raises :class:`~cygnet.errors.RequestError` for one that cannot mean
    the same here.
    """
    words: list[str] = []
    waiting = [word for word in given if word != "--"]  # comfy launch wants it before the server's own flags
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.partition("=")
        alone = not equals and (not waiting or waiting[0].startswith("-"))
        if flag in REFUSED:
            raise RequestError(f"{flag} has no meaning here: {REFUSED[flag]}", field=flag.lstrip("-"))
        if flag in SETTLED:
            note(f"{flag} changes nothing: {SETTLED[flag]}")
        elif flag == "--cpu":
            words += ["--device", "cpu"]
        elif flag in ("--cuda-device", "--default-device"):
            if alone:
                raise RequestError(f"{flag} needs the number of a device, as in {flag} 0", field=flag.lstrip("-"))
            words += ["--device", f"cuda:{value if equals else waiting.pop(0)}"]
        elif flag == "--listen" and alone:
            words += [flag, f"{EVERYWHERE},::" if _has_ipv6() else EVERYWHERE]
        elif flag == "--verbose" and alone:
            words += [flag, "DEBUG"]
        elif flag == "--enable-cors-header" and (alone or "*" in (value, *waiting[:1])):
            raise RequestError(
                "--enable-cors-header for every origin would let every site in; name the one that may call the studio, "
                "as in --enable-cors-header https://example.org",
                field="enable_cors_header",
            )
        else:
            words.append(word)
    return words


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
