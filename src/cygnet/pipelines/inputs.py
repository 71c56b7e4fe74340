"""Pictures and videos that a request comes with: whether they go together with it, and cut to fit.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cygnet.errors import RequestError
from cygnet.pipelines.components import Components
from cygnet.pipelines.conditioning import cover, crop_to_aspect
from cygnet.pipelines.denoise import check_noise_device
from cygnet.pipelines.record import Record
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import FRAME_STRIDE


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a request may come with. Not changed, and not kept after the run."""

    image: torch.Tensor | None = None
    """The first frame: float32 ``[3, H, W]`` in [-1, 1], any size."""
    last_image: torch.Tensor | None = None
    """The last frame, likewise."""
    video: torch.Tensor | None = None
    """A video to make anew: float32 ``[3, T, H, W]`` in [-1, 1]."""


def check_combination(components: Components, request: GenerateRequest, inputs: Inputs) -> None:
    """Raise :class:`~cygnet.errors.RequestError`, stating the rule, unless the model can do this with these inputs.

    That includes noise from a device that is not there.
    """
    variant, model = components.dit.variant, f"this is {components.variant}"
    if variant in ("vace", "control", "camera"):
        raise RequestError(
            f"{model}, which follows a control; make its videos in a workflow: cygnet run FILE", field="model"
        )
    if inputs.last_image is not None and inputs.image is None:
        raise RequestError("last_image is given without image; give both, or image alone", field="image")
    if inputs.image is not None and inputs.video is not None:
        raise RequestError("image and video are both given; give one of them", field="video")
    if variant == "t2v":
        if inputs.image is not None:
            raise RequestError(
                f"{model}; image-to-video needs an I2V model: load tiny-i2v, i2v-14b-480p or i2v-14b-720p, or leave "
                "the image out",
                field="image",
            )
    elif inputs.video is not None:
        raise RequestError(f"{model}; video-to-video needs a T2V model: load tiny-t2v or t2v-1.3b", field="video")
    elif inputs.image is None:
        raise RequestError(
            f"{model}, which needs a picture: give image, or load a T2V model for text alone", field="image"
        )
    if variant == "i2v" and inputs.last_image is not None:
        raise RequestError(
            f"{model}; a last frame needs an FLF2V model: load flf2v-14b-720p, or leave last_image out",
            field="last_image",
        )
    if variant == "flf2v":
        if inputs.last_image is None:
            raise RequestError(
                f"{model}, which needs a first and a last frame: give last_image too, or load an I2V model",
                field="last_image",
            )
        if request.num_frames == 1:
            raise RequestError("num_frames is 1; a first and a last frame need at least 5", field="num_frames")
    if inputs.video is None and request.strength != 1:
        raise RequestError(
            f"strength is {request.strength:g}, but no video is given; leave it out, or give video", field="strength"
        )
    if inputs.video is not None and inputs.video.shape[1] < request.num_frames:
        have = inputs.video.shape[1]
        raise RequestError(
            f"num_frames is {request.num_frames}, but the video has {have} frames; ask for at most "
            f"{1 + (have - 1) // FRAME_STRIDE * FRAME_STRIDE}",
            field="num_frames",
        )
    check_noise_device(request.noise_device)
    for name in ("image", "last_image", "video"):
        check_pixels(name, getattr(inputs, name), 4 if name == "video" else 3)


def check_pixels(name: str, value: torch.Tensor | None, axes: int) -> None:
    """Raise :class:`~cygnet.errors.RequestError` unless a picture (3 axes) or video (4) is as :class:`Inputs` says."""
    if value is None:
        return
    if value.ndim != axes or value.shape[0] != 3 or not value.is_floating_point() or not value.numel():
        shape = "[3, T, H, W]" if axes == 4 else "[3, H, W]"
        raise RequestError(f"{name} is {value.dtype} {list(value.shape)}; it must be floating {shape}", field=name)
    low, high = (float(x) for x in value.aminmax())
    if not (low >= -1 and high <= 1):
        raise RequestError(f"{name} has values from {low:g} to {high:g}; they must be in [-1, 1]", field=name)


def fitted(inputs: Inputs, request: GenerateRequest, record: Record) -> Inputs:
    """The inputs cut to the video's aspect if that was asked for, and a last frame made to match the first."""
    size = (request.width, request.height)

    def fit(name: str, pixels: torch.Tensor | None) -> torch.Tensor | None:
        if pixels is None or request.image_fit == "stretch":
            return pixels
        cut = crop_to_aspect(pixels, *size)
        if cut.shape != pixels.shape:
            record.notices.append(
                f"{name} was cut from {pixels.shape[-1]}x{pixels.shape[-2]} to {cut.shape[-1]}x{cut.shape[-2]} about "
                f"its centre, to fit {size[0]}x{size[1]}"
            )
        return cut

    image, last = fit("image", inputs.image), inputs.last_image
    if image is not None and last is not None and last.shape != image.shape:
        record.notices.append(
            f"last_image was scaled and cut from {last.shape[2]}x{last.shape[1]} to match the first frame, "
            f"{image.shape[2]}x{image.shape[1]}"
        )
        last = cover(last, image.shape[2], image.shape[1]).clamp(-1, 1)
    if image is not None and last is not None and torch.equal(image.float(), last.float()):
        record.notices.append("the first and the last frame are the same picture; expect little motion")
    video = inputs.video
    if video is not None and video.shape[1] > request.num_frames:
        record.notices.append(f"only the first {request.num_frames} of the video's {video.shape[1]} frames are used")
        video = video[:, : request.num_frames]
    return Inputs(image=image, last_image=last, video=fit("video", video))
