"""What people say about a scene of the tiny world, in English and Chinese, in many wordings."""

from __future__ import annotations

import numpy as np

from recipes.tiny.world import Entity, Scene

Rng = np.random.Generator

COLOUR_WORDS = {
    "red": (("red", "bright red", "crimson"), ("红色", "红")),
    "green": (("green", "bright green"), ("绿色", "绿")),
    "blue": (("blue", "bright blue"), ("蓝色", "蓝")),
    "yellow": (("yellow", "bright yellow"), ("黄色", "黄")),
    "purple": (("purple", "violet"), ("紫色", "紫")),
    "orange": (("orange",), ("橙色", "橘色")),
    "white": (("white",), ("白色", "白")),
    "cyan": (("cyan", "turquoise"), ("青色", "青蓝色")),
}
SHAPE_WORDS = {
    "ball": (("ball", "ball", "sphere", "circle"), ("球", "圆球", "小球")),
    "square": (("square", "square", "box", "block"), ("方块", "正方形")),
    "triangle": (("triangle",), ("三角形",)),
    "star": (("star", "star", "five-pointed star"), ("星星", "五角星")),
}
# Each motion: third person, present participle, Chinese.
MOTION_WORDS = {
    "moves left": (
        ("moves left", "moves to the left", "slides left", "goes left", "travels from right to left"),
        ("moving left", "moving to the left", "sliding left", "going left"),
        ("向左移动", "往左移动", "从右向左滑动", "向左走"),
    ),
    "moves right": (
        ("moves right", "moves to the right", "slides right", "goes right", "travels from left to right"),
        ("moving right", "moving to the right", "sliding right", "going right"),
        ("向右移动", "往右移动", "从左向右滑动", "向右走"),
    ),
    "moves up": (
        ("moves up", "moves upwards", "rises", "goes up", "floats up"),
        ("moving up", "moving upwards", "rising", "going up", "floating up"),
        ("向上移动", "往上移动", "上升", "升起"),
    ),
    "moves down": (
        ("moves down", "moves downwards", "falls", "goes down", "sinks"),
        ("moving down", "moving downwards", "falling", "going down", "sinking"),
        ("向下移动", "往下移动", "下落", "落下"),
    ),
    "bounces": (
        ("bounces", "bounces up and down", "jumps up and down", "hops"),
        ("bouncing", "bouncing up and down", "jumping up and down", "hopping"),
        ("弹跳", "上下弹跳", "蹦跳"),
    ),
    "spins": (
        ("spins", "rotates", "spins in place", "turns around", "spins clockwise"),
        ("spinning", "rotating", "spinning in place", "turning around"),
        ("旋转", "原地旋转", "转动"),
    ),
    "grows": (
        ("grows", "gets bigger", "becomes larger", "expands"),
        ("growing", "getting bigger", "becoming larger", "expanding"),
        ("变大", "逐渐变大", "放大"),
    ),
    "shrinks": (
        ("shrinks", "gets smaller", "becomes smaller", "contracts"),
        ("shrinking", "getting smaller", "becoming smaller", "contracting"),
        ("变小", "逐渐变小", "缩小"),
    ),
    "circles": (
        ("circles", "moves in a circle", "goes around in a circle", "circles around", "orbits"),
        ("circling", "moving in a circle", "going around in a circle", "orbiting"),
        ("绕圈", "转圈移动", "绕着圆圈移动", "沿圆形移动"),
    ),
}
BACKGROUND_WORDS = {
    "black": (("black",), ("黑色",)),
    "grey": (("grey", "grey", "gray"), ("灰色",)),
    "navy": (("navy", "navy", "navy blue", "dark blue"), ("深蓝色", "海军蓝")),
    "dark green": (("dark green", "dark green", "deep green"), ("深绿色", "墨绿色")),
    "brown": (("brown",), ("棕色", "褐色")),
}


def _pick(rng: Rng, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _thing(rng: Rng, entity: Entity, article: bool = True) -> str:
    colour, shape = _pick(rng, COLOUR_WORDS[entity.colour][0]), _pick(rng, SHAPE_WORDS[entity.shape][0])
    an = "an" if colour[0] in "aeiou" else "a"
    return f"{an} {colour} {shape}" if article else f"{colour} {shape}"


def _english(rng: Rng, scene: Scene, background: bool) -> str:
    form = int(rng.integers(4))
    if form == 0:
        parts = [f"{_thing(rng, e)} {_pick(rng, MOTION_WORDS[e.motion][0])}" for e in scene.entities]
    elif form == 1:
        parts = [f"{_thing(rng, e)} {_pick(rng, MOTION_WORDS[e.motion][1])}" for e in scene.entities]
    elif form == 2:
        parts = [f"{_thing(rng, e)} that {_pick(rng, MOTION_WORDS[e.motion][0])}" for e in scene.entities]
    else:
        parts = [f"{_thing(rng, e, article=False)} {_pick(rng, MOTION_WORDS[e.motion][1])}" for e in scene.entities]
    joint = (" and ", ", ", " while ", " next to ")[int(rng.integers(4)) if form else int(rng.integers(3))]
    text = joint.join(parts)
    if background:
        name = _pick(rng, BACKGROUND_WORDS[scene.background][0])
        form = int(rng.integers(5))
        if form == 0:
            text = f"on a {name} background, {text}"
        else:
            text += (
                f" on a {name} background",
                f", {name} background",
                f" against a {name} background",
                f" on {name}",
            )[form - 1]
    lead = rng.random()
    if lead < 0.06:
        text = f"a video of {text}"
    elif lead < 0.12:
        text = f"an animation of {text}"
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.3 else text


def _chinese(rng: Rng, scene: Scene, background: bool) -> str:
    parts = []
    for entity in scene.entities:
        colour, shape = _pick(rng, COLOUR_WORDS[entity.colour][1]), _pick(rng, SHAPE_WORDS[entity.shape][1])
        motion = _pick(rng, MOTION_WORDS[entity.motion][2])
        count = ("一个", "")[int(rng.integers(2))]
        glue = "的" if colour.endswith("色") or rng.random() < 0.5 else ""
        form = int(rng.integers(3))
        if form == 0:
            parts.append(f"{count}{motion}的{colour}{shape}")
        else:
            parts.append(
                f"{count}{colour}{glue}{shape}{('', '在')[form - 1] if motion[0] not in '向往从' else ''}{motion}"
            )
    text = ("，", "，", "和")[int(rng.integers(3))].join(parts)
    if background:
        name = _pick(rng, BACKGROUND_WORDS[scene.background][1])
        form = int(rng.integers(3))
        text = (f"{name}背景上，{text}", f"{text}，{name}背景", f"在{name}的背景下，{text}")[form]
    return text + "。" if rng.random() < 0.3 else text


def caption(scene: Scene, rng: Rng, *, chinese: float = 0.25, background: float = 0.95) -> str:
    """One wording of the scene. ``chinese`` and ``background`` are chances: of the language, of naming the background.

    Entities are named in their order in the scene, which is that of reading: the one nearer the upper left is first.
    """
    speak = _chinese if rng.random() < chinese else _english
    return speak(rng, scene, bool(rng.random() < background))


def plain_caption(scene: Scene) -> str:
    """The wording that evaluation uses: "a red ball moves right and a blue star spins on a black background"."""
    parts = []
    for entity in scene.entities:
        article = "an" if entity.colour[0] in "aeiou" else "a"
        parts.append(f"{article} {entity.colour} {entity.shape} {entity.motion}")
    return f"{' and '.join(parts)} on a {scene.background} background"
