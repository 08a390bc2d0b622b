"""Bytes of a text file -> text, and the name of the encoding that was found.

`charset-normalizer` proposes; between one-byte Latin encodings, which all decode, known letters decide.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter

from finetune.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)
# What files are really written in; the detector knows 100 more, and each of them is a chance to be wrong.
_USUAL = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859_2", "koi8_r", "latin_1",
          "gb18030", "big5", "cp932", "euc_jp", "cp949"]
_EVIDENCE_BYTES = 1 << 16
_ESCAPED = re.compile("[\udc80-\udcff]")
_JIS = (b"\x1b$B", b"\x1b$@", b"\x1b(J")  # what switches a Japanese mail's encoding to another alphabet
# Letters beyond ASCII of the languages that are written in one-byte Latin encodings.
_ALPHABETS = {
    "cp1252": ("àâæçéèêëîïôœùûüÿ", "äöüß", "æøåéäö", "áéíñóúüçàèïò", "áâãàçéêíóôõúü", "àèéìíîòóùú", "áéíóúýðþæö"),
    "cp1254": ("çğıöşüâîû",),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţșț"),
}
_ALPHABETS["iso8859_2"] = _ALPHABETS["cp1250"]
_NEUTRAL = set("’‘‚“”„«»–—…·•´¨°§£€©®™¡¿\xa0\xad")
_BEYOND_ASCII, _CONTROL = re.compile(b"[\x80-\xff]+"), re.compile(b"[\x00-\x08\x0e-\x19\x1c-\x1f]")
_NEARLY = 0.05  # a better share of known letters must be better by this much to outweigh what is more usual


def decode_text(payload: bytes, source: str) -> tuple[str, str]:
    """(text, encoding). UTF-8 unless a byte order mark or the bytes say otherwise.

    Raises DataError when the bytes are no text in any usual encoding.
    """
    for mark, encoding in _MARKS:
        if payload.startswith(mark):
            return _decode(payload, encoding, source), encoding
    if b"\0" not in payload:
        if any(mark in payload for mark in _JIS) and _decodes(payload, "iso2022_jp"):
            return payload.decode("iso2022_jp"), "iso2022_jp"
        try:
            return payload.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            pass
        mended = _mostly_utf8(payload)
        if mended is not None:
            return mended, "utf-8"
    encoding = _detect(payload)
    if encoding is None:
        raise DataError(f"{source}: {_why_not(payload)}; save it as UTF-8")
    return _decode(payload, encoding, source), encoding


def note_on_encoding(encoding: str, source: str) -> str | None:
    """For the user, where the encoding was guessed; None where it is UTF-8."""
    if encoding.startswith("utf-8"):
        return None
    return f"{source}: read as {encoding}, which its bytes suggest; if letters look wrong, save it as UTF-8"


def _mostly_utf8(payload: bytes) -> str | None:
    """UTF-8 in which some lines are broken, as escaped bytes (U+DC80 to U+DCFF) that `broken_bytes` finds; else None.

    Bytes of another encoding are hardly ever valid UTF-8 by chance, so a few lines that are decide it.
    """
    lines = [line for line in payload.split(b"\n") if not line.isascii()]
    valid = sum(_decodes(line, "utf-8") for line in lines)
    return payload.decode("utf-8", "surrogateescape") if valid > 0.1 * len(lines) else None


def broken_bytes(text: str) -> bool:
    """Whether `text` holds bytes that are not UTF-8."""
    return _ESCAPED.search(text) is not None


def clean(value: object) -> str:
    """The text without unpaired surrogates (JSON's "\\ud800", escaped bytes), which nothing can write or tokenize."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _why_not(payload: bytes) -> str:
    line = payload.count(b"\n", 0, payload.find(b"\0")) + 1
    return f"not text: there is a zero byte in line {line}" if b"\0" in payload else "not text in any usual encoding"


def _decode(payload: bytes, encoding: str, source: str) -> str:
    try:
        return payload.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: byte {error.start} is not {encoding}, though the file looks like it; "
                        "save it as UTF-8") from error


def _detect(payload: bytes) -> str | None:
    if b"\0" in payload:
        return _utf16_without_mark(payload)
    if len(_CONTROL.findall(payload)) > 0.01 * len(payload):
        return None
    if _has_single_letters(payload):
        return _latin(payload, payload)
    from charset_normalizer import from_bytes

    # Plain ASCII lines say nothing and would outvote the others in the detector's samples.
    telling = b"\n".join(line for line in payload.split(b"\n") if not line.isascii())[:_EVIDENCE_BYTES]
    japanese = _japanese(payload, telling)
    if japanese:
        return japanese
    found = from_bytes(telling, steps=20, chunk_size=2048, cp_isolation=_USUAL)
    usable = [match for match in found if _decodes(payload, match.encoding)]
    if not usable:
        return None
    best = usable[0].encoding
    return _latin(payload, telling) if best in {*_ALPHABETS, "latin_1"} else best


def _has_single_letters(payload: bytes) -> bool:
    """Whether bytes beyond ASCII mostly stand alone among ASCII letters, as accents do; other scripts come in runs.

    Else one pound sign in an English file would be taken for half a Chinese character.
    """
    runs = Counter(len(run) for run in _BEYOND_ASCII.findall(payload))
    return runs[1] > 0.6 * sum(length * count for length, count in runs.items())


def _japanese(payload: bytes, telling: bytes) -> str | None:
    """The encoding in which the bytes are full of kana, as no text in another language is."""
    for encoding in ("cp932", "euc_jp"):
        if _decodes(payload, encoding):
            found = [c for c in telling.decode(encoding, "ignore") if not c.isascii()]
            if sum("\u3041" <= c <= "\u30fa" for c in found) > 0.2 * len(found):
                return encoding
    return None


def _latin(payload: bytes, telling: bytes) -> str:
    """The Latin encoding in which most letters belong to one language's alphabet; cp1252 where it is close.

    The detector itself takes cp1250 (Central Europe) and cp1252, which share most letters, for each other.
    """
    shares = {encoding: _known_share(telling.decode(encoding, "ignore"), alphabets)
              for encoding, alphabets in _ALPHABETS.items() if _decodes(payload, encoding)}
    best = max(shares, key=shares.__getitem__, default="latin_1")
    return "cp1252" if shares.get("cp1252", 0.0) >= shares.get(best, 0.0) - _NEARLY and "cp1252" in shares else best


def _known_share(text: str, alphabets: tuple[str, ...]) -> float:
    """The share of the characters beyond ASCII that are in the alphabet that has most of them."""
    found = Counter(c for c in text.lower() if not c.isascii() and c not in _NEUTRAL)
    most = max(sum(count for c, count in found.items() if c in alphabet) for alphabet in alphabets)
    return most / found.total() if found else 1.0


def _utf16_without_mark(payload: bytes) -> str | None:
    """Text in Latin letters has a zero in every second byte."""
    even, odd = payload[0::2].count(0), payload[1::2].count(0)
    if max(even, odd) < 0.3 * len(payload) / 2 or min(even, odd) > 0.05 * max(even, odd):
        return None
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    return encoding if _decodes(payload, encoding) else None


def _decodes(payload: bytes, encoding: str) -> bool:
    try:
        payload.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
