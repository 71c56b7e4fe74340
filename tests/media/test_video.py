from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cygnet.media.video import FORMATS, VideoFormat, open_writer


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [1, 6])
def test_every_format_takes_frames_in_pieces_and_one_frame_alone(tmp_path: Path, kind: VideoFormat, count: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)
    with open_writer(tmp_path / f"x.{kind}", width=48, height=32, fps=16) as writer:
        for piece in (frames[:1], frames[1:5], frames[5:]):
            writer.write(piece)
        assert list(tmp_path.glob("x*")) == []
    assert writer.num_frames == count
    assert [entry.name for entry in tmp_path.iterdir()] == [writer.path.name]
