"""Text to UMT5 token ids, from a SentencePiece model or a ``tokenizer.json``.

Both forms are published for the same vocabulary: the first also inside ComfyUI's text-encoder files, the second in the
official and Diffusers folders. Files come from strangers, so sizes are limited and everything is checked on loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from cygnet.errors import RequestError, WeightFileError
from cygnet.models.umt5.cleaning import clean_prompt

TokenizerKind = Literal["sentencepiece", "tokenizers"]

MAX_TOKENS = 512
"""Rows of text that Wan's cross-attention was trained with, the end token included."""
MAX_CHARACTERS = 100_000
MAX_FILE_BYTES = 32 * 2**20
"""The published files have 4.5 MB (SentencePiece) and 17 MB (JSON)."""
END_ID = 1
"""The end-of-text token of every T5 vocabulary."""


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """A prompt as the encoder sees it."""

    ids: tuple[int, ...]
    """At least one and at most :data:`MAX_TOKENS` ids, the end token last; never padded."""
    num_cut: int
    """Tokens that did not fit and were left out."""
    cut_text: str
    """The end of the cleaned prompt that was left out; empty when everything fitted."""


class Vocabulary(Protocol):
    """The little that a :class:`Tokenizer` asks of the two libraries."""

    @property
    def size(self) -> int:
        """Ids run from 0 to ``size - 1``."""
        ...

    def split(self, text: str) -> list[int]:
        """Ids of cleaned text, without an end token."""
        ...

    def join(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


class Tokenizer:
    """Cleaning, splitting, the end token and the length limit; immutable and safe to share between threads."""

    def __init__(self, vocabulary: Vocabulary, kind: TokenizerKind, max_tokens: int = MAX_TOKENS) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; the end token alone needs 1")
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self.kind: TokenizerKind = kind

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read ``*.json`` as a tokenizer.json and any other name as a SentencePiece model.

        Raises :class:`~cygnet.errors.WeightFileError` when the file is missing, not regular, too large or not what its
        name says.
        """
        if not path.exists():
            raise WeightFileError(
                f"the tokenizer {path.name} is missing; a text encoder needs its spiece.model or tokenizer.json"
            )
        if not path.is_file():
            raise WeightFileError(f"the tokenizer {path.name} is not a regular file")
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise WeightFileError(f"the tokenizer {path.name} cannot be read: {error.strerror}") from error
        read = cls.from_json if path.suffix.lower() == ".json" else cls.from_sentencepiece
        return read(data, name=path.name)

    @classmethod
    def from_sentencepiece(cls, data: bytes, *, name: str = "spiece.model") -> Self:
        """From the bytes of a serialised SentencePiece model; ``name`` is used in messages.

        Raises :class:`~cygnet.errors.WeightFileError` when they are not a T5 vocabulary.
        """
        _refuse_what_is_no_vocabulary(data, name)
        if data.lstrip()[:1] == b"{":
            raise WeightFileError(
                f"{name} holds JSON, not a SentencePiece model; if it is a tokenizer.json, name it so"
            )
        return cls(_checked(_SentencePieceVocabulary, data, name), "sentencepiece")

    @classmethod
    def from_json(cls, data: bytes, *, name: str = "tokenizer.json") -> Self:
        """From the bytes of a ``tokenizer.json`` with a Unigram model; ``name`` is used in messages.

        Raises :class:`~cygnet.errors.WeightFileError` when they are not a T5 vocabulary.
        """
        _refuse_what_is_no_vocabulary(data, name)
        if data.lstrip()[:1] != b"{":
            raise WeightFileError(f"{name} does not hold JSON; a SentencePiece model must be named spiece.model")
        return cls(_checked(_JSONVocabulary, data, name), "tokenizers")

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to ``vocab_size - 1``."""
        return self._vocabulary.size

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, the end token last, at most :data:`MAX_TOKENS`; see :meth:`tokenize` for what was cut."""
        return list(self.tokenize(text).ids)

    def tokenize(self, text: str) -> PromptTokens:
        """Ids of ``text`` and what did not fit. The empty text is the end token alone.

        Raises :class:`~cygnet.errors.RequestError` for something that is not text or exceeds :data:`MAX_CHARACTERS`.
        """
        if not isinstance(text, str):
            raise RequestError(f"the prompt is of type {type(text).__name__}; it must be text", field="prompt")
        if len(text) > MAX_CHARACTERS:
            raise RequestError(
                f"the prompt has {len(text)} characters; at most {MAX_CHARACTERS} are taken, and only the first "
                f"{self._max_tokens} tokens of them count",
                field="prompt",
            )
        ids = self._vocabulary.split(clean_prompt(text))
        room = self._max_tokens - 1
        kept, cut = ids[:room], ids[room:]
        return PromptTokens(
            ids=(*kept, END_ID), num_cut=len(cut), cut_text=self._vocabulary.join(cut).strip() if cut else ""
        )

    def check_fits(self, vocab_size: int) -> None:
        """Raise :class:`~cygnet.errors.WeightFileError` unless an encoder with ``vocab_size`` rows can belong to this.

        Published tables are padded by less than a thousand rows; one that is a quarter empty is another model's.
        """
        if not 0.75 * vocab_size <= self.vocab_size <= vocab_size:
            raise WeightFileError(
                f"the tokenizer has {self.vocab_size} tokens but the text encoder has {vocab_size}; they are of "
                "different models, so give the tokenizer that came with the encoder"
            )


class _SentencePieceVocabulary:
    def __init__(self, data: bytes) -> None:
        # Each library is imported only where its kind of file is read: a run needs one of them.
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.end_id: int | None = self._processor.eos_id()

    @property
    def size(self) -> int:
        return int(self._processor.vocab_size())

    def split(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def join(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(list(ids)))


class _JSONVocabulary:
    def __init__(self, data: bytes) -> None:
        import tokenizers

        self._tokenizer: Any = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        if not isinstance(self._tokenizer.model, tokenizers.models.Unigram):
            raise ValueError(f"its model is {type(self._tokenizer.model).__name__}, UMT5 has Unigram")
        # The file may ask for both; the length limit is ours, and padding is never computed.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.end_id: int | None = self._tokenizer.token_to_id("</s>")

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def split(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def join(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


def _checked(
    kind: type[_SentencePieceVocabulary] | type[_JSONVocabulary], data: bytes, name: str
) -> _SentencePieceVocabulary | _JSONVocabulary:
    try:
        vocabulary = kind(data)
        vocabulary.split("a prompt with \u2603")  # some defects show only at the first unknown character
    except BaseException as error:
        # The Rust library reports some damaged files by a panic, which is no Exception and which it does not export.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise WeightFileError(f"{name} cannot be used as a tokenizer: {_first_line(error)}; fetch it again") from error
    if vocabulary.end_id != END_ID:
        raise WeightFileError(
            f"{name} is not a UMT5 tokenizer: its end token has id {vocabulary.end_id} and must have {END_ID}"
        )
    return vocabulary


def _refuse_what_is_no_vocabulary(data: bytes, name: str) -> None:
    if len(data) > MAX_FILE_BYTES:
        raise WeightFileError(
            f"{name} is larger than {MAX_FILE_BYTES // 2**20} MiB; UMT5 tokenizers have at most 17 MB"
        )
    if not data:
        raise WeightFileError(f"{name} is empty; fetch it again")
    if data.startswith(b"version https://git-lfs"):
        raise WeightFileError(f"{name} is a Git LFS pointer, not the file itself; run `git lfs pull` or fetch it again")
    if data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightFileError(f"{name} is a web page, not a tokenizer; fetch it again")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
