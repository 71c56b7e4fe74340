from __future__ import annotations

import functools
import io
import json
import os
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch

from cygnet.errors import RequestError, WeightFileError
from cygnet.models.umt5.cleaning import clean_prompt
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.prompt import encode_prompt, encode_tokens
from cygnet.models.umt5.tokenizer import END_ID, MAX_CHARACTERS, MAX_FILE_BYTES, MAX_TOKENS, Tokenizer
from support import filled_weights, parameter_shapes

SENTENCES = ["a red ball moves right on a black background", "the blue square spins", "一个红色的球向右移动"]
CAPTION = "a red ball moves right"


@functools.cache
def spiece(end_id: int = END_ID) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=written,
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=end_id,
        unk_id=3 - end_id,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@functools.cache
def tokenizer_json() -> bytes:
    """The vocabulary of :func:`spiece` in the other form, with the settings that published files carry."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END_ID)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    return tokenizer.to_str().encode()


def both() -> list[Tokenizer]:
    return [Tokenizer.from_sentencepiece(spiece()), Tokenizer.from_json(tokenizer_json())]


def test_the_end_token_closes_the_ids_and_nothing_pads_them() -> None:
    for tokenizer in both():
        ids = tokenizer.encode(CAPTION)
        assert ids.count(END_ID) == 1
        assert ids[-1] == END_ID
        assert 0 not in ids
        assert len(ids) > 4


def test_both_forms_of_one_vocabulary_give_the_same_ids() -> None:
    first, second = both()
    for text in [*SENTENCES, "RED ball é ☃", "", "  a \n red\tball "]:
        assert first.encode(text) == second.encode(text)
    assert (first.kind, second.kind) == ("sentencepiece", "tokenizers")
    assert first.vocab_size == second.vocab_size


def test_the_empty_text_is_the_end_token_alone() -> None:
    for tokenizer in both():
        assert tokenizer.encode("") == [END_ID]
        assert tokenizer.encode(" \n ") == [END_ID]


def test_a_long_text_is_cut_to_the_limit_and_the_cut_is_reported() -> None:
    for tokenizer in both():
        text = "a red ball " * 200
        whole = Tokenizer(tokenizer._vocabulary, tokenizer.kind, max_tokens=10**6).tokenize(text)
        tokens = tokenizer.tokenize(text)
        assert len(tokens.ids) == MAX_TOKENS
        assert tokens.ids[-1] == END_ID
        assert tokens.ids[:-1] == whole.ids[: MAX_TOKENS - 1]
        assert tokens.num_cut == len(whole.ids) - MAX_TOKENS > 0
        assert text.strip().endswith(tokens.cut_text)
        assert "red ball" in tokens.cut_text


def test_a_text_that_just_fits_is_not_cut() -> None:
    for tokenizer in both():
        length = len(tokenizer.encode(CAPTION))
        exact = Tokenizer(tokenizer._vocabulary, tokenizer.kind, max_tokens=length).tokenize(CAPTION)
        tight = Tokenizer(tokenizer._vocabulary, tokenizer.kind, max_tokens=length - 1).tokenize(CAPTION)
        assert (exact.num_cut, exact.cut_text) == (0, "")
        assert tight.num_cut == 1


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("  a \t red\r\n\n ball\u3000here ", "a red ball here"),
        ("schÃ¶n", "schön"),
        ("a &amp;amp; b &lt;b&gt;", "a & b <b>"),
        ("RED Ball!", "RED Ball!"),
        ("a\x00b\x1bc", "abc"),
        ("“quoted”", '"quoted"'),
        ("", ""),
    ],
)
def test_cleaning_follows_the_official_rule(given: str, cleaned: str) -> None:
    assert clean_prompt(given) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "👩\u200d👩\u200d👧",
        "\u202eright to left",
        "a" + "\u0301" * 500,
        "a\x00b",
        "\ud800",
        "\ufeffx",
        "\x1b[31m",
        "&#xD800;",
        "${x} %n ; rm",
    ],
    ids=ascii,
)
def test_odd_text_is_only_text(text: str) -> None:
    for tokenizer in both():
        ids = tokenizer.encode(text)
        assert ids[-1] == END_ID
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_a_text_beyond_the_limit_is_refused_before_any_work() -> None:
    for tokenizer in both():
        assert len(tokenizer.encode("a " * (MAX_CHARACTERS // 2))) == MAX_TOKENS
        with pytest.raises(RequestError, match=f"at most {MAX_CHARACTERS}") as error:
            tokenizer.encode("a" * (MAX_CHARACTERS + 1))
        assert error.value.field == "prompt"


@pytest.mark.parametrize("text", [None, 3, b"a red ball", ["a"]])
def test_what_is_not_text_is_refused(text: object) -> None:
    with pytest.raises(RequestError, match="must be text"):
        both()[0].encode(text)  # type: ignore[arg-type]


def test_files_are_read_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece())
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    assert Tokenizer.from_file(tmp_path / "spiece.model").kind == "sentencepiece"
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").kind == "tokenizers"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"spiece\.model is missing") as error:
        Tokenizer.from_file(tmp_path / "spiece.model")
    assert str(tmp_path) not in str(error.value)


def test_folders_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "spiece.model")
    (tmp_path / "tokenizer.json").mkdir()
    for name in ("spiece.model", "tokenizer.json"):
        with pytest.raises(WeightFileError, match="not a regular file"):
            Tokenizer.from_file(tmp_path / name)


def test_swapped_files_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(tokenizer_json())
    (tmp_path / "tokenizer.json").write_bytes(spiece())
    with pytest.raises(WeightFileError, match="holds JSON"):
        Tokenizer.from_file(tmp_path / "spiece.model")
    with pytest.raises(WeightFileError, match="does not hold JSON"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_huge_line_of_merges_is_refused_by_size() -> None:
    merges = b'{"model":{"type":"BPE","vocab":{},"merges":["' + b"a" * MAX_FILE_BYTES + b'"]}}'
    for read in (Tokenizer.from_json, Tokenizer.from_sentencepiece):
        with pytest.raises(WeightFileError, match="larger than 32 MiB"):
            read(merges)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
    ],
)
def test_what_stands_in_for_a_file_is_recognised(data: bytes, reason: str) -> None:
    for read in (Tokenizer.from_json, Tokenizer.from_sentencepiece):
        with pytest.raises(WeightFileError, match=reason):
            read(data)


def test_a_damaged_sentencepiece_model_is_refused() -> None:
    for length in (1, 7, 100, len(spiece()) - 3):
        with pytest.raises(WeightFileError, match="cannot be used as a tokenizer"):
            Tokenizer.from_sentencepiece(spiece()[:length])


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.0]]}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []}},
        {"model": UNIGRAM | {"unk_id": 7}},
        {"model": UNIGRAM | {"unk_id": None}},
        {"model": UNIGRAM, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ],
    ids=["no model", "another kind of model", "unknown id outside", "no unknown id", "damaged character map"],
)
def test_a_damaged_tokenizer_json_is_refused(content: object) -> None:
    with pytest.raises(WeightFileError, match="cannot be used as a tokenizer"):
        Tokenizer.from_json(json.dumps(content).encode())


def test_a_vocabulary_with_another_end_token_is_refused() -> None:
    with pytest.raises(WeightFileError, match="end token has id 2"):
        Tokenizer.from_sentencepiece(spiece(end_id=2))
    without_end = {"model": UNIGRAM | {"vocab": [["<unk>", 0.0], ["a", -1.0]]}}
    with pytest.raises(WeightFileError, match="end token has id None"):
        Tokenizer.from_json(json.dumps(without_end).encode())


def encoder_for(vocab_size: int) -> UMT5Encoder:
    config = UMT5Config(vocab_size=vocab_size, dim=16, attention_dim=16, ffn_dim=32, num_heads=2, num_layers=2)
    encoder = UMT5Encoder(config)
    encoder.load_state_dict(filled_weights(parameter_shapes(encoder)))
    return encoder


def test_a_prompt_gives_one_row_per_real_token() -> None:
    tokenizer = both()[0]
    encoder = encoder_for(tokenizer.vocab_size)
    tokens = tokenizer.tokenize(CAPTION)
    features = encode_prompt(encoder, tokenizer, CAPTION)
    assert features.shape == (len(tokens.ids), 16)
    assert not features.requires_grad
    padded = torch.tensor([[*tokens.ids, *[0] * (MAX_TOKENS - len(tokens.ids))]])
    torch.testing.assert_close(features, encoder(padded, padded != 0)[0, : len(tokens.ids)].detach())
    assert torch.equal(features, encode_tokens(encoder, tokens))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = both()[0]
    tokenizer.check_fits(tokenizer.vocab_size + 10)
    for vocab_size in (tokenizer.vocab_size - 1, 2 * tokenizer.vocab_size):
        with pytest.raises(WeightFileError, match="different models"):
            encode_prompt(encoder_for(vocab_size), tokenizer, CAPTION)
