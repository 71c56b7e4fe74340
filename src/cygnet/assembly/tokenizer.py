"""Where a text encoder's tokenizer is: inside its file, beside it, or where the caller says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cygnet.assembly.arguments import Place
from cygnet.checkpoints import ComponentWeights
from cygnet.checkpoints.folders import TOKENIZER_FILES
from cygnet.checkpoints.weight_file import shown
from cygnet.errors import WeightFileError
from cygnet.models.umt5.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer is: a serialised SentencePiece model, or a file."""

    data: bytes | None = None
    path: Path | None = None

    @classmethod
    def find(cls, weights: ComponentWeights, given: Place | None = None) -> TokenizerSource | None:
        """``given`` (a file or a folder), else the one inside the weight file, else one beside it; None if none is."""
        if given is not None:
            path = Path(given)
            found = _tokenizer_in(path) if path.is_dir() else path
            if found is None:
                raise WeightFileError(f"folder {shown(path)} holds no {' and no '.join(TOKENIZER_FILES)}")
            return cls(path=found)
        if (data := weights.tokenizer_bytes) is not None:
            return cls(data=data)
        folder = weights.file.path if weights.file.path.is_dir() else weights.file.path.parent
        for place in (folder, folder / "tokenizer", folder.parent / "tokenizer", folder / "google" / "umt5-xxl"):
            if found := _tokenizer_in(place):
                return cls(path=found)
        return None

    def read(self) -> Tokenizer:
        """The tokenizer; raises :class:`~cygnet.errors.WeightFileError` if it is damaged."""
        if self.data is not None:
            return Tokenizer.from_sentencepiece(self.data, name="the tokenizer inside the text encoder")
        assert self.path is not None
        return Tokenizer.from_file(self.path)


def _tokenizer_in(folder: Path) -> Path | None:
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def no_tokenizer() -> WeightFileError:
    """What is raised where one is needed and there is none."""
    return WeightFileError(
        f"the text encoder came without a tokenizer; put its {' or '.join(TOKENIZER_FILES)} beside it, or give its "
        "path as tokenizer"
    )
