"""The checker of the tiny world: right on real renders, and never talked into calling a wrong clip right.

Only the clips come from the renderer; several promises are tested by turning clips over, playing them backwards or
cutting them together, where no renderer can be wrong in the same way.
"""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from recipes.tiny import world
from recipes.tiny.checker import (
    BACKGROUNDS,
    COLOURS,
    DAMAGES,
    MOTIONS,
    SHAPES,
    TAUGHT_MOTIONS,
    Thing,
    Verdict,
    compare,
    judge,
    judge_motion_only,
    main,
    observe,
    self_test,
)
from recipes.tiny.world import Entity, Scene, Track

Frames = npt.NDArray[np.uint8]
TIME = np.linspace(0, 1, world.FRAMES, dtype=np.float32)
STILL = np.zeros_like(TIME)
SAME_SIZE = np.full_like(TIME, 0.16)


@functools.cache
def clip(colour: str, shape: str, motion: str, background: str = "navy", seed: int = 0) -> Frames:
    scene = Scene((Entity(colour, shape, motion),), background)
    return world.render(scene, world.random_tracks(scene, np.random.default_rng(seed)))


def drawn(
    colour: str,
    shape: str,
    *,
    x: npt.NDArray[np.float32] = STILL,
    y: npt.NDArray[np.float32] = STILL,
    radius: npt.NDArray[np.float32] = SAME_SIZE,
    angle: npt.NDArray[np.float32] = STILL,
    background: str = "navy",
) -> Frames:
    """A clip of an object that moves as no caption says; ``x`` and ``y`` from the middle of the frame."""
    track = Track(np.stack([0.5 + x, 0.5 + y], axis=1).astype(np.float32), radius, angle)
    return world.render(Scene((Entity(colour, shape, ""),), background), (track,))


def only(frames: Frames) -> Thing:
    """The one object in a clip."""
    (thing,) = observe(frames).things
    return thing


def painted(inside: npt.NDArray[np.bool_], colour: tuple[int, int, int] = (240, 215, 40)) -> Frames:
    frames = np.empty((world.FRAMES, 128, 128, 3), np.uint8)
    frames[:] = BACKGROUNDS["navy"]
    frames[:, inside] = colour
    return frames


def test_the_vocabulary_is_that_of_the_captions() -> None:
    assert set(COLOURS) == set(world.COLOURS)
    assert set(BACKGROUNDS) == set(world.BACKGROUNDS)
    assert set(SHAPES) == set(world.SHAPES)
    assert set(MOTIONS) == set(world.MOTIONS)
    assert TAUGHT_MOTIONS == (world.DIAGONAL,)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_seen_in_every_motion(shape: str, motion: str) -> None:
    which = SHAPES.index(shape) + MOTIONS.index(motion)
    colour, background = COLOURS[which % len(COLOURS)], list(BACKGROUNDS)[which % len(BACKGROUNDS)]
    assert judge(clip(colour, shape, motion, background), [(colour, shape, motion)], background).right


@pytest.mark.parametrize("shape", SHAPES)
def test_the_taught_motion_is_told_from_its_parts_and_from_its_reverse(shape: str) -> None:
    frames = clip("yellow", shape, world.DIAGONAL)
    assert judge(frames, [("yellow", shape, world.DIAGONAL)], "navy").right
    for known in MOTIONS:
        assert not judge(frames, [("yellow", shape, known)], "navy").motion
    for other in (frames[::-1], frames[:, :, ::-1], frames[:, ::-1]):
        assert only(other).motion is None


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_seen_on_every_background(colour: str, background: str) -> None:
    observation = observe(clip(colour, "ball", "spins", background))
    assert observation.background == background
    assert [(thing.colour, thing.shape, thing.motion) for thing in observation.things] == [(colour, "ball", "spins")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("objects", [1, 2])
def test_damaged_clips_are_still_right_under_true_captions_and_wrong_under_false_ones(
    damage: str, objects: int
) -> None:
    trial = self_test(6, objects=objects, damage=damage, seed=11)
    assert trial.right == trial.clips
    assert trial.captions > 0
    assert trial.false_right == 0


BACKWARDS = {
    "moves left": "moves right",
    "moves right": "moves left",
    "moves up": "moves down",
    "moves down": "moves up",
    "bounces": "bounces",
    "spins": None,
    "grows": "shrinks",
    "shrinks": "grows",
    "circles": None,
}
MIRRORED = {motion: motion for motion in MOTIONS} | {
    "moves left": "moves right",
    "moves right": "moves left",
    "spins": None,
    "circles": None,
}
UPSIDE_DOWN = {motion: motion for motion in MOTIONS} | {
    "moves up": "moves down",
    "moves down": "moves up",
    "bounces": None,
    "spins": None,
    "circles": None,
}


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", ["ball", "star"])
def test_a_clip_played_backwards_or_mirrored_shows_the_opposite_motion(shape: str, motion: str) -> None:
    frames = clip("yellow", shape, motion)
    assert only(frames[::-1]).motion == BACKWARDS[motion]
    assert only(frames[:, :, ::-1]).motion == MIRRORED[motion]
    assert only(frames[:, ::-1]).motion == UPSIDE_DOWN[motion]


def test_a_clip_on_its_side_keeps_its_shape_and_turns_its_direction() -> None:
    thing = only(np.rot90(clip("red", "triangle", "moves right"), axes=(1, 2)))
    assert (thing.shape, thing.motion) == ("triangle", "moves up")


def test_tracks_are_measured_in_frame_heights() -> None:
    thing = only(drawn("cyan", "ball", x=(TIME - 0.5) * np.float32(0.4)))
    assert thing.centre[:, 0] == pytest.approx(0.5 + (TIME - 0.5) * 0.4, abs=0.01)
    # A spot that is darker than half the ball counts as a hole, which moves the centre by up to 7 % of the radius.
    assert thing.centre[:, 1] == pytest.approx(0.5, abs=0.015)
    assert thing.present.all()
    assert thing.confidence > 0.95
    y, x = np.mgrid[:128, :128] - 63.5
    assert only(painted(np.hypot(x, y) < 24)).size == pytest.approx(24 / 128, abs=0.005)


@pytest.mark.parametrize("turns", [0.8, 1.1, -0.9, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_turns_are_measured(shape: str, turns: float) -> None:
    thing = only(drawn("orange", shape, angle=TIME * np.float32(2 * math.pi * turns)))
    assert thing.turns == pytest.approx(turns, abs=0.06)


def test_an_empty_clip_shows_nothing_and_is_wrong() -> None:
    frames = painted(np.zeros((128, 128), bool))
    observation = observe(frames)
    assert (observation.background, observation.things) == ("navy", ())
    verdict = judge(frames, [("red", "ball", "spins")], "navy")
    assert verdict == Verdict(colour=False, shape=False, motion=False, background=True, count=False)
    assert not verdict.right


def test_noise_without_an_object_is_wrong() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (17, 128, 128, 3), dtype=np.uint8)
    assert not judge(frames, [("red", "ball", "spins")], "grey").right


def test_an_extra_object_or_a_missing_one_is_wrong() -> None:
    scene = Scene((Entity("red", "ball", "spins"), Entity("cyan", "star", "moves up")), "black")
    frames = world.render(scene, world.random_tracks(scene, np.random.default_rng(1)))
    both = [entity.triple for entity in scene.entities]
    assert judge(frames, both, "black").right
    assert judge(frames, both[::-1], "black").right
    for one in both:
        verdict = judge(frames, [one], "black")
        assert (verdict.colour, verdict.shape, verdict.motion, verdict.count) == (True, True, True, False)
        assert not judge_motion_only(frames, [one])
    assert not judge(clip("red", "ball", "spins", "black"), both, "black").right
    assert not judge(frames, [*both, ("white", "star", "moves up")], "black").right


def test_two_objects_do_not_lend_each_other_their_properties() -> None:
    scene = Scene((Entity("red", "ball", "spins"), Entity("cyan", "star", "moves up")), "black")
    frames = world.render(scene, world.random_tracks(scene, np.random.default_rng(1)))
    verdict = judge(frames, [("red", "star", "spins"), ("cyan", "ball", "moves up")], "black")
    assert (verdict.colour, verdict.shape, verdict.motion) == (True, False, True)
    verdict = judge(frames, [("red", "ball", "moves up"), ("cyan", "star", "spins")], "black")
    assert (verdict.colour, verdict.shape, verdict.motion) == (True, True, False)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(drawn("red", "star"), id="rests"),
        pytest.param(drawn("red", "star", x=(TIME - 0.5) * np.float32(0.12)), id="creeps"),
        pytest.param(drawn("red", "star", x=(TIME - 0.5) * 0.4, y=(0.5 - TIME) * 0.4), id="another diagonal"),
        pytest.param(drawn("red", "star", x=0.25 - np.abs(TIME - 0.5)), id="there and back"),
        pytest.param(drawn("red", "star", y=0.15 - 1.2 * (TIME - 0.5) ** 2), id="one hop"),
        pytest.param(drawn("red", "star", x=0.2 * np.cos(3 * TIME), y=0.2 * np.sin(3 * TIME)), id="half a circle"),
        pytest.param(drawn("red", "star", x=0.2 * np.sin(12.6 * TIME)), id="bounces sideways"),
        pytest.param(drawn("red", "star", angle=TIME * np.float32(1.2)), id="a fifth of a turn"),
        pytest.param(drawn("red", "star", radius=0.16 + 0.02 * TIME), id="hardly grows"),
        pytest.param(drawn("red", "star", radius=0.22 - 0.28 * np.abs(TIME - 0.5)), id="swells and shrinks"),
        pytest.param(drawn("red", "star", x=(TIME - 0.5) * 0.4, radius=0.08 + 0.1 * TIME), id="moves and grows"),
        pytest.param(drawn("red", "star", x=(TIME - 0.5) * 0.4, angle=TIME * np.float32(6.3)), id="moves and spins"),
    ],
)
def test_what_no_caption_says_has_no_motion(frames: Frames) -> None:
    thing = only(frames)
    assert (thing.colour, thing.shape, thing.motion) == ("red", "star", None)


def test_an_object_that_vanishes_half_way_moves_wrongly() -> None:
    frames = clip("red", "ball", "moves left").copy()
    frames[9:] = BACKGROUNDS["navy"]
    assert not judge_motion_only(frames, [("red", "ball", "moves left")])


def test_an_object_that_changes_half_way_is_wrong() -> None:
    truth = ("red", "ball", "moves left")
    start = clip(*truth)
    for other in (("yellow", "ball", "moves left"), ("red", "star", "moves left"), ("red", "ball", "moves up")):
        mixed = np.concatenate([start[:9], clip(*other)[9:]])
        assert not judge(mixed, [truth], "navy").right
        assert not judge(mixed, [other], "navy").right


def test_an_outline_may_be_lost_now_and_then_but_not_for_good() -> None:
    frames = clip("red", "star", "spins")
    y, x = np.mgrid[:128, :128] - 63.5
    cx, cy = only(frames).centre[0] * 128 - 64
    patch = (abs(x - cx) < 27) & (abs(y - cy) < 13)
    now_and_then, for_good = frames.copy(), frames.copy()
    now_and_then[1::3][:, patch] = (220, 40, 40)
    for_good[9:][:, patch] = (220, 40, 40)
    assert only(now_and_then).shape == "star"
    assert only(for_good).shape is None


def test_a_background_that_changes_half_way_has_no_name() -> None:
    halves = [clip("red", "ball", "spins", "navy")[:9], clip("red", "ball", "spins", "brown")[9:]]
    assert observe(np.concatenate(halves)).background is None


def test_a_background_of_another_colour_has_no_name() -> None:
    assert observe(np.full((17, 128, 128, 3), (120, 20, 90), np.uint8)).background is None


def test_other_shapes_have_no_name() -> None:
    y, x = np.mgrid[:128, :128] - 63.5
    assert only(painted(np.hypot(x, y) < 24)).shape == "ball"
    assert only(painted(np.hypot(x, 1.5 * y) < 24)).shape is None
    assert only(painted((abs(x) < 30) & (abs(y) < 16))).shape is None
    assert only(painted(((abs(x) < 30) & (abs(y) < 8)) | ((abs(y) < 30) & (abs(x) < 8)))).shape is None


def test_other_colours_have_no_name() -> None:
    y, x = np.mgrid[:128, :128] - 63.5
    disc = np.hypot(x, y) < 24
    assert only(painted(disc)).colour == "yellow"
    assert only(painted(disc, (200, 140, 140))).colour is None
    assert only(painted(disc, (150, 150, 150))).colour is None
    assert only(painted(disc, (240, 40, 160))).colour is None


def test_a_spot_that_looks_like_the_background_leaves_a_ball() -> None:
    for seed in range(4):
        assert judge(clip("white", "ball", "spins", "grey", seed), [("white", "ball", "spins")], "grey").right


def test_two_objects_that_touch_are_still_two() -> None:
    y, x = np.mgrid[:128, :128] - 63.5
    frames = painted(np.hypot(x + 20, y) < 20)
    frames[:, (abs(x - 18) < 18) & (abs(y) < 18)] = (45, 90, 235)
    assert {(thing.colour, thing.shape) for thing in observe(frames).things} == {("yellow", "ball"), ("blue", "square")}


def test_a_smeared_object_stays_one() -> None:
    # Half-way to dark green, orange has the hue of yellow.
    frames = drawn("orange", "triangle", background="dark green")
    later = np.roll(frames, 14, axis=2)
    frames[8] = (frames[8] * np.float32(0.6) + later[8] * np.float32(0.4)).astype(np.uint8)
    assert only(frames).colour == "orange"


def test_motion_alone_ignores_shape_colour_and_background() -> None:
    frames = clip("red", "ball", "moves left")
    assert judge_motion_only(frames, [("blue", "star", "moves left")])
    assert not judge_motion_only(frames, [("red", "ball", "moves right")])


def test_an_observation_can_be_compared_with_many_captions() -> None:
    observation = observe(clip("red", "ball", "moves left"))
    assert compare(observation, [("red", "ball", "moves left")], "navy").right
    assert not compare(observation, [("red", "ball", "moves left")], "black").right


def test_unknown_words_are_refused() -> None:
    frames = clip("red", "ball", "moves left")
    with pytest.raises(ValueError, match=r"'crimson' in .* is unknown; use one of red"):
        judge(frames, [("crimson", "ball", "moves left")], "navy")
    with pytest.raises(ValueError, match="background 'pink' is unknown; use one of black"):
        judge(frames, [("red", "ball", "moves left")], "pink")
    with pytest.raises(ValueError, match="no objects expected"):
        judge_motion_only(frames, [])


@pytest.mark.parametrize(
    "frames",
    [np.zeros((17, 128, 128), np.uint8), np.zeros((17, 128, 128, 3), np.float32), np.zeros((2, 128, 128, 3), np.uint8)],
)
def test_frames_of_another_form_are_refused(frames: Frames) -> None:
    with pytest.raises(ValueError, match="give "):
        observe(frames)


def test_the_self_test_prints_a_line_of_json_for_each_trial(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--self-test", "2", "--damage", "clean", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["objects"], line["clips"], line["right"]) for line in lines] == [(1, 2, 2), (2, 1, 1)]
