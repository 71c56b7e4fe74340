"""Where results go."""

from __future__ import annotations

from pathlib import Path

import pytest

from cygnet.cli.targets import check_target, plan_targets, reserved
from cygnet.errors import CygnetError, RequestError

HOSTILE = [
    "../../x", "/etc/x", "C:\\x", "\\\\server\\x", "%2e%2e%2fx", "%252e%252e%252fx", "..∕..∕x", "x\ny", "x\0y",
    "x" * 300, "CON", "dot.", ".hidden", "-rf", "~", "$HOME", "$(touch fired)", "<b>x</b>", "'; DROP TABLE x; --",
    "🎈", "con.mp4", "\x1b[31mred", "a\u202eb", "{seed}", "{prompt.__class__}", "%n%s", "球", "é" * 200, "",
]  # fmt: skip


@pytest.mark.parametrize("prompt", HOSTILE)
@pytest.mark.parametrize("out", [None, "folder/", "folder/{prompt}-{seed}.webm"])
def test_a_prompt_decides_no_folder_and_makes_a_harmless_name(prompt: str, out: str | None) -> None:
    (target,) = plan_targets(out, prompt, [7], "tiny-t2v")
    assert target.folder == Path("folder" if out else ".")
    name = target.path.name
    assert name.isprintable()
    assert not set(name) & set("/\\:*?\"<>|%${}'~\0\n ")
    assert name[0] not in ".-"
    assert name.split(".")[0].lower() not in {"con", "nul"}
    assert len(f"{name}.json".encode()) < 255


def test_one_name_per_seed() -> None:
    assert [t.path for t in plan_targets(None, "a b", [1, 2], "m")] == [Path("a-b-1.mp4"), Path("a-b-2.mp4")]
    assert [t.path for t in plan_targets("x.gif", "a b", [1, 2], "m")] == [Path("x-1.gif"), Path("x-2.gif")]
    assert [t.path for t in plan_targets("x.gif", "a b", [1], "m")] == [Path("x.gif")]
    pattern = "{model}/{index:02}-{seed}.mp4"
    assert [t.path for t in plan_targets(pattern, "a", [8, 9], "T2V 1.3B")] == [
        Path("T2V-1.3B/01-8.mp4"),
        Path("T2V-1.3B/02-9.mp4"),
    ]
    assert plan_targets("{{x}}.mp4", "a", [1], "m")[0].path == Path("{x}.mp4")


@pytest.mark.parametrize(
    "out", ["{date}.mp4", "{0}.mp4", "{}.mp4", "{seed!r}.mp4", "{seed:>99999}", "{seed", "}", "a\0b"]
)
def test_a_pattern_that_is_not_understood_is_refused(out: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan_targets(out, "a", [1], "m")
    assert caught.value.field == "out"


def test_an_automatic_name_is_ours_alone_and_given_back_unused(place: Path) -> None:
    (target,) = plan_targets(str(place), "x", [1], "m")
    with reserved(target) as first, reserved(target) as second:
        assert (first.name, second.name) == ("x-1.mp4", "x-1-2.mp4")
        second.write_bytes(b"result")
    assert [path.name for path in place.iterdir()] == ["x-1-2.mp4"]


def test_a_place_is_checked_without_writing(place: Path) -> None:
    shape = {"width": 32, "height": 32, "fps": 16.0, "num_frames": 5}
    for out in ("x.txt", "gone/x.mp4"):
        (target,) = plan_targets(str(place / out), "x", [1], "m")
        with pytest.raises(CygnetError):
            check_target(target, **shape, overwrite=False)  # type: ignore[arg-type]
    (target,) = plan_targets(str(place / "x.gif"), "x", [1], "m")
    assert "1/100 s" in check_target(target, **shape, overwrite=False)[0]  # type: ignore[arg-type]
    assert list(place.iterdir()) == []
