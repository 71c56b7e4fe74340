"""What nodes of the current contract show and save: ``comfy_api.latest.ui``, on top of our own saving nodes."""

from __future__ import annotations

from typing import Any

import torch

from cygnet.nodes.described import described
from cygnet.nodes.files import MaskPreview, PreviewImage, SaveImage, write
from cygnet.nodes.modern import FolderType
from cygnet.nodes.workshop import Workshop


class SavedResult(dict[str, str]):
    """One file that was saved."""

    def __init__(self, filename: str, subfolder: str, type: FolderType | str) -> None:
        super().__init__(filename=filename, subfolder=subfolder, type=FolderType(type).value)

    filename = property(lambda self: self["filename"])
    subfolder = property(lambda self: self["subfolder"])
    type = property(lambda self: FolderType(self["type"]))


class Shown:
    """What a node shows, as the graph takes it."""

    def __init__(self, shown: dict[str, Any]) -> None:
        self._shown = shown

    def as_dict(self) -> dict[str, Any]:
        """Names to lists."""
        return self._shown


class SavedImages(Shown):
    """Pictures, or animations."""

    def __init__(self, results: list[Any], is_animated: bool = False) -> None:
        super().__init__({"images": list(results), **({"animated": [True]} if is_animated else {})})
        self.results = results
        self.is_animated = is_animated


class PreviewText(Shown):
    """A text on the node."""

    def __init__(self, value: str, **more: Any) -> None:
        super().__init__({"text": [value]})


def ui_names(shop: Workshop) -> dict[str, Any]:
    """What ``comfy_api.latest.ui`` holds."""

    def told(cls: Any) -> tuple[Any, Any]:
        hidden = getattr(cls, "hidden", None)
        return getattr(hidden, "prompt", None), getattr(hidden, "extra_pnginfo", None)

    def results(saved: list[dict[str, str]]) -> list[SavedResult]:
        return [SavedResult(**it) for it in saved]

    class Previewed(SavedImages):
        """Pictures to look at."""

        def __init__(self, image: torch.Tensor, animated: bool = False, cls: Any = None, **more: Any) -> None:
            shown = PreviewImage.bind(shop)().run(image, *told(cls))  # type: ignore[attr-defined]
            super().__init__(results(shown["ui"]["images"]), animated)

    class PreviewedMask(SavedImages):
        """A mask to look at."""

        def __init__(self, mask: torch.Tensor, animated: bool = False, cls: Any = None, **more: Any) -> None:
            shown = MaskPreview.bind(shop)().run(mask, *told(cls))  # type: ignore[attr-defined]
            super().__init__(results(shown["ui"]["images"]), animated)

    class ImageSaveHelper:
        """Saving with the workflow inside."""

        @staticmethod
        def save_images(
            images: torch.Tensor, filename_prefix: str, folder_type: Any, cls: Any, compress_level: int = 4
        ) -> list[SavedResult]:
            node = type("Saver", (SaveImage.bind(shop),), {"KIND": FolderType(folder_type).value})()
            return results(node.save(images, filename_prefix, *told(cls)))

        @classmethod
        def get_save_images_ui(
            self, images: torch.Tensor, filename_prefix: str, cls: Any, compress_level: int = 4
        ) -> SavedImages:
            return SavedImages(self.save_images(images, filename_prefix, FolderType.output, cls))

        @staticmethod
        def save_animated_webp(
            images: torch.Tensor, filename_prefix: str, folder_type: Any, cls: Any, fps: float, lossless: bool,
            quality: int, method: int = 4,
        ) -> SavedResult:  # fmt: skip
            level = 10.0 if lossless else min(quality, 99) / 10
            kind: Any = FolderType(folder_type).value
            notes = described(shop, *told(cls))
            saved = write(shop, images, fps, filename_prefix, "webp", notes, quality=level, folder=kind)
            return SavedResult(**saved.json())

        @classmethod
        def get_save_animated_webp_ui(
            self, images: torch.Tensor, filename_prefix: str, cls: Any, fps: float, lossless: bool, quality: int,
            method: int = 4,
        ) -> SavedImages:  # fmt: skip
            saved = self.save_animated_webp(
                images, filename_prefix, FolderType.output, cls, fps, lossless, quality, method
            )
            return SavedImages([saved], is_animated=len(images) > 1)

    return {
        "SavedResult": SavedResult,
        "SavedImages": SavedImages,
        "PreviewImage": Previewed,
        "PreviewMask": PreviewedMask,
        "PreviewText": PreviewText,
        "ImageSaveHelper": ImageSaveHelper,
    }
