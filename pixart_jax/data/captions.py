"""Captions to the text an encoder reads: PixArt-α cleans hard and lower-cases, PixArt-Σ takes captions as they are.

| text goes through | in PixArt's own code              | in diffusers 0.42, α and Σ pipelines alike    |
|-------------------|-----------------------------------|-----------------------------------------------|
| `clean_alpha`     | α: training, features, inference  | `clean_caption=True`, the default of the call |
| `clean_sigma`     | Σ: training, features, inference  | never                                         |
| `lower_and_strip` | α's embedder, preprocessing off   | `clean_caption=False`                         |

A model hears best what it was trained on: diffusers hands Σ cleaned, lower-cased text that Σ's training never saw.

The cleaning comes from DeepFloyd IF and was made for alt texts off the web. It takes "end.it begins" for a domain and
"½" for junk, and is kept as it is, because α's weights know only its output. It gives what diffusers' `_clean_caption`
gives, except that no caption makes it raise or hang:
- diffusers raises on "<![x" and on character references of thousands of digits; here they stay text.
- diffusers' rules for addresses, file names and sizes take time quadratic in the caption's length; here possessive
  quantifiers, and branches that copy what cannot match, make them linear.
- Python's HTML parser is as slow on tags that never end; here more than 64 of them are text.

α's own code strips once more, between `fix_text` and the phrases. This changes a caption whose ends are junk behind
junk: of "(: -cat" diffusers' two passes leave "-cat", α's "cat".
"""

from __future__ import annotations

import html
import io
import re
import urllib.parse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pixart_jax.errors import InputError


class Rule(NamedTuple):
    """Every match of `pattern` becomes `replacement`."""

    pattern: re.Pattern[str]
    replacement: str
    why: str


def _domain(scheme: str) -> re.Pattern[str]:
    """`scheme:` with slashes or one letter more, or a bare domain with its path, unless an @ follows.

    Where a run of domain characters holds no domain, seen from its first word boundary, it holds none from any later
    one either: group 1 takes the run in one step, up to a scheme inside it, and the replacement puts it back.
    """
    scheme = rf"{scheme}:(?:/{{1,3}}|[a-z0-9%])"
    domain = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
    return re.compile(rf"\b(?:{scheme}|{domain})|(\b(?:(?!\b{scheme})[a-z0-9.\-])++)")


_MOST_UNCLOSED_TAGS = 64  # more than any caption has; each costs the HTML parser a walk over the rest of the text
_EXTENSIONS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

# The order of the rules is part of their meaning: what one leaves over, the next may take.
_LINKS = (
    Rule(re.compile("<person>"), "person", "a placeholder for a name, not an HTML tag"),
    Rule(_domain("https?"), r"\1", "addresses"),
    Rule(_domain("www"), r"\1", "addresses again: with one gone, its neighbours may have become one"),
)
_MARKS = (
    Rule(re.compile(r"@\w+"), "", "@nicknames"),
    Rule(
        re.compile(r"[\u31c0-\u9fff]+"),
        "",
        "CJK strokes, Katakana extensions, enclosed and compatibility CJK, Yijing hexagrams, most ideographs",
    ),
    Rule(
        re.compile(
            r"[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
            r"\ufe31\ufe32\ufe58\ufe63\uff0d]+"
        ),
        "-",
        "one kind of dash, and one of it",
    ),
    Rule(re.compile("[`´«»“”¨]"), '"', "one kind of double quote"),
    Rule(re.compile("[‘’]"), "'", "one kind of single quote"),
    Rule(re.compile("&quot;?"), "", "a quote that was escaped twice"),
    Rule(re.compile("&amp"), "", "an ampersand that was escaped twice"),
    Rule(re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"), " ", "IP addresses"),
    Rule(re.compile(r"\d:\d\d\s+$"), "", "article ids, only before trailing white space"),
    Rule(re.compile(r"\\n"), " ", "a line break spelled as a backslash and an n"),
    Rule(re.compile(r"#(?:\d{1,3}|\d{5,})\b"), "", "#1 to #999 and #10000 upwards; of #1234 only the # goes, below"),
    Rule(re.compile(r"\b\d{6,}\b"), "", "long numbers are ids"),
    Rule(re.compile(rf"\S+\.(?:{_EXTENSIONS})|(\S++)"), r"\1", "file names; group 1 keeps the words that hold none"),
    Rule(re.compile("[\"']{2,}"), '"', '"""SOLD OUT"""'),
    Rule(re.compile(r"\.{2,}"), " ", "dots that trail off..."),
    Rule(re.compile(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+"), " ", "***SOLD OUT***"),
    Rule(re.compile(r"(?<!\s)\s++\.\s+"), " ", "a dot on its own"),
)
_PHRASES = (
    Rule(re.compile(r"\b[a-zA-Z]{1,3}\d{3,15}\b"), "", "article ids: jc6640"),
    Rule(re.compile(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b"), "", "article ids: jc6640vc"),
    Rule(re.compile(r"\b\d+[a-zA-Z]+\d+\b"), "", "article ids: 6640vc231"),
    Rule(re.compile(r"(?:worldwide\s+)?(?:free\s+)?shipping"), "", "shop talk"),
    Rule(re.compile(r"(?:free\s)?download(?:\sfree)?"), "", "shop talk"),
    Rule(re.compile(r"\bclick\b\s(?:for|on)\s\w+"), "", "click for details"),
    Rule(re.compile(rf"\b(?:{_EXTENSIONS})(?:\simages?)?"), "", "file types: png images"),
    Rule(re.compile(r"\bpage\s+\d+\b"), "", "page 3"),
    Rule(re.compile(r"\b\d*+[a-zA-Z]++\d++[a-zA-Z]++\d++[a-zA-Z\d]*+\b"), " ", "article ids: j2d1a2a"),
    Rule(
        re.compile(r"\b\d++(?:\.\d*+)?+[xх×]\d++(?:\.\d*+\b|\.?\b)"),
        "",
        "sizes, with Latin x, Cyrillic х or ×: 30x40.5",
    ),
    Rule(re.compile(r"\b\s+:\s+"), ": ", "a colon on its own belongs to the word before it"),
    Rule(re.compile(r"(\D[,./])\b"), r"\1 ", "a space after punctuation that is glued to the next word"),
    Rule(re.compile(r"\s+"), " ", "runs of white space"),
    # A space in front or at the end shields what lies behind it from the rest: nothing has stripped the caption yet.
    Rule(re.compile("^[\"'](.+)[\"']$"), r"\1", "quotes around the whole caption"),
    Rule(re.compile("^['_,\\-:;]"), "", "one mark in front"),
    Rule(re.compile(r"['_,\-:+]$"), "", "one mark at the end"),
    Rule(re.compile(r"^\.\S+$"), "", "nothing but a file extension"),
)


def clean_caption(text: str) -> str:
    """One pass of α's cleaning; α's models read the result of two, `clean_alpha`.

    Raises:
      InputError: ftfy or beautifulsoup4 is not installed.
    """
    try:  # both here, so that what is missing is missed at the first caption
        import bs4  # noqa: F401
        import ftfy
    except ImportError as error:
        raise InputError(
            "PixArt-α's caption cleaning needs two more libraries: pip install ftfy beautifulsoup4"
        ) from error
    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _text_of_html(_apply(_LINKS, text))
    text = _apply(_MARKS, text)
    if text.count("-") + text.count("_") > 3:
        text = re.sub("[-_]", " ", text)  # this-is-my-cute-cat, but not black-and-white
    text = _unescape_twice(ftfy.fix_text(text))
    return _apply(_PHRASES, text).strip()


def clean_alpha(text: str) -> str:
    """What α's models were trained on: `clean_caption` twice.

    The second pass takes what the first one uncovered. A third can find more ("%252525" is "%" escaped three times, and
    one pass drops one colon of ":::cat"), so do not clean a caption that was cleaned before.

    Raises:
      InputError: ftfy or beautifulsoup4 is not installed.
    """
    return clean_caption(clean_caption(text))


def clean_sigma(text: str) -> str:
    """What Σ's models were trained on: the caption, case and all, without white space around it."""
    return text.strip()


def lower_and_strip(text: str) -> str:
    """What diffusers does, for α and Σ, where it is told not to clean."""
    return text.lower().strip()


# What captions go through before they are tokenised, by the name that a model's directory keeps.
CLEANING: dict[str, Callable[[str], str]] = {"alpha": clean_alpha, "sigma": clean_sigma, "none": lambda text: text}


def _apply(rules: Sequence[Rule], text: str) -> str:
    for rule in rules:
        text = rule.pattern.sub(rule.replacement, text)
    return text


def _text_of_html(text: str) -> str:
    """Drops tags and comments and resolves character references."""
    import bs4

    if "<" not in text and "&" not in text:
        return text  # nothing to parse, and most captions are of this kind
    for start, end in (("<!--", "-->"), ("<", ">")):
        rest = text.rfind(end) + 1  # no tag in here ends, and for each the parser looks through all that follows it
        if text.count(start, rest) > _MOST_UNCLOSED_TAGS:
            text = text[:rest] + text[rest:].replace(start, start.replace("<", "&lt;"))
    try:
        # A stream, because of a string Beautiful Soup wonders in a warning whether it is a file name.
        return bs4.BeautifulSoup(io.StringIO(text), "html.parser").text
    except (bs4.ParserRejectedMarkup, ValueError):
        return text


def _unescape_twice(text: str) -> str:
    try:
        return html.unescape(html.unescape(text))
    except ValueError:  # a character reference with more digits than int() reads
        return text
