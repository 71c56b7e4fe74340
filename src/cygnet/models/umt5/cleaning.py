"""What the official code does to a prompt before it is split into tokens."""

from __future__ import annotations

import html
import re

import ftfy


def clean_prompt(text: str) -> str:
    """Repair mis-decoded characters, resolve HTML entities twice, make each run of white space one blank, strip.

    Case and punctuation stay, except that ftfy straightens quotes and drops control characters; a lone surrogate
    becomes U+FFFD, so the result can always be encoded. Source: Wan-Video/Wan2.1, ``wan/modules/tokenizers.py``.
    """
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", repaired).strip()
