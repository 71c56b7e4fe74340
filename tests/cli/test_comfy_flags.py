"""The flags that users of ComfyUI know mean the same to ``cygnet launch``, or are refused in words."""

from __future__ import annotations

import inspect
import re

import pytest

from cygnet.cli.comfy_flags import REFUSED, SETTLED, understood
from cygnet.cli.launch import launch
from cygnet.errors import RequestError

FLAGS = tuple(re.findall(r"\S+", """
    listen port tls-keyfile tls-certfile enable-cors-header max-upload-size base-directory extra-model-paths-config
    output-directory temp-directory input-directory auto-launch disable-auto-launch cuda-device default-device
    cuda-malloc disable-cuda-malloc force-fp32 force-fp16 fp32-unet fp64-unet bf16-unet fp16-unet fp8_e4m3fn-unet
    fp8_e5m2-unet fp8_e8m0fnu-unet fp16-vae fp32-vae bf16-vae cpu-vae fp8_e4m3fn-text-enc fp8_e5m2-text-enc
    fp16-text-enc fp32-text-enc bf16-text-enc force-channels-last directml oneapi-device-selector disable-ipex-optimize
    supports-fp8-compute preview-method preview-size cache-classic cache-lru cache-none cache-ram
    use-split-cross-attention use-quad-cross-attention use-pytorch-cross-attention use-sage-attention
    use-flash-attention disable-xformers force-upcast-attention dont-upcast-attention enable-manager disable-manager-ui
    enable-manager-legacy-ui gpu-only highvram normalvram lowvram novram cpu reserve-vram async-offload
    disable-async-offload force-non-blocking default-hashing-function disable-smart-memory deterministic fast
    mmap-torch-files disable-mmap disable-pinned-memory dont-print-server quick-test-for-ci windows-standalone-build
    disable-metadata disable-all-custom-nodes whitelist-custom-nodes disable-api-nodes multi-user verbose log-stdout
    front-end-version front-end-root user-directory enable-compress-response-body comfy-api-base database-url
    disable-assets-autoscan
"""))  # fmt: skip
"""Names of the flags of ComfyUI's launcher."""
TRANSLATED = {"cpu", "cuda-device", "default-device"}


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_taken_or_refused_in_words(name: str) -> None:
    ours = name.replace("-", "_") in inspect.signature(launch).parameters
    flag = f"--{name}"
    assert [ours, name in TRANSLATED, flag in SETTLED, flag in REFUSED].count(True) == 1
    notes: list[str] = []
    if flag in REFUSED:
        with pytest.raises(RequestError, match=f"^{flag} has no meaning here: ....."):
            understood([flag, "7"], notes.append)
    elif flag in SETTLED:
        assert understood([flag, "--port", "7"], notes.append) == ["--port", "7"]
        assert notes[0].startswith(f"{flag} changes nothing: ")
    elif ours:
        assert understood([flag, "7"], notes.append) == [flag, "7"]
        assert not notes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--cpu"], ["--device", "cpu"]),
        (["--cuda-device", "1", "--port", "9"], ["--device", "cuda:1", "--port", "9"]),
        (["--default-device=2"], ["--device", "cuda:2"]),
        (["--verbose"], ["--verbose", "DEBUG"]),
        (["--verbose", "ERROR"], ["--verbose", "ERROR"]),
        (["--listen", "127.0.0.1,::1"], ["--listen", "127.0.0.1,::1"]),
        (["--", "--port", "9"], ["--port", "9"]),
    ],
)
def test_what_is_written_differently_is_translated(given: list[str], words: list[str]) -> None:
    assert understood(given, lambda text: None) == words


def test_listening_without_an_address_is_listening_everywhere() -> None:
    flag, addresses, *rest = understood(["--listen", "--port", "9"], lambda text: None)
    assert (flag, rest) == ("--listen", ["--port", "9"])
    assert addresses in ("0.0.0.0", "0.0.0.0,::")


@pytest.mark.parametrize(
    "given",
    [["--enable-cors-header"], ["--enable-cors-header", "--cpu"], ["--enable-cors-header", "*"], ["--cuda-device"]],
)
def test_a_value_that_must_be_there_is_asked_for(given: list[str]) -> None:
    with pytest.raises(RequestError, match=given[0]):
        understood(given, lambda text: None)
