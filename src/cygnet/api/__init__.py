"""What most programs need: load a model, ask for a video, save it.

    wan = cygnet.load("tiny-t2v")
    video = wan.generate("a red ball moves right on a black background", seed=1)
    video.save("ball.mp4")

What is given (``given``) and asked (``options``) becomes a video (``video``) by a model (``wan``).
"""

from __future__ import annotations

from cygnet.api.given import Frames, ImageLike, VideoLike
from cygnet.api.options import Options
from cygnet.api.video import Video, VideoStream
from cygnet.api.wan import USUAL_PROMPT, Layout, Wan, load, plan

__all__ = [
    "USUAL_PROMPT",
    "Frames",
    "ImageLike",
    "Layout",
    "Options",
    "Video",
    "VideoLike",
    "VideoStream",
    "Wan",
    "load",
    "plan",
]
