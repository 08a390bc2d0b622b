"""Bytes of a text file -> text, and the name of the encoding that was found."""

from __future__ import annotations

import codecs

from finetune.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)
# What files are really written in; the detector knows 100 more, and each of them is a chance to be wrong.
_USUAL = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859_2", "koi8_r", "latin_1",
          "gb18030", "big5", "cp932", "euc_jp", "cp949"]
_EVIDENCE_BYTES = 1 << 16


def decode_text(payload: bytes, source: str) -> tuple[str, str]:
    """(text, encoding). UTF-8 unless a byte order mark or the bytes say otherwise.

    Raises DataError when the bytes are no text in any usual encoding.
    """
    for mark, encoding in _MARKS:
        if payload.startswith(mark):
            return _decode(payload, encoding, source), encoding
    if b"\0" not in payload:
        try:
            return payload.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            pass
    encoding = _detect(payload)
    if encoding is None:
        raise DataError(f"{source}: not text in any usual encoding; save it as UTF-8")
    return _decode(payload, encoding, source), encoding


def _decode(payload: bytes, encoding: str, source: str) -> str:
    try:
        return payload.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: byte {error.start} is not {encoding}, though the file looks like it; "
                        "save it as UTF-8") from error


def _detect(payload: bytes) -> str | None:
    if b"\0" in payload:
        return _utf16_without_mark(payload)
    from charset_normalizer import from_bytes

    # Plain ASCII lines say nothing and would outvote the others in the detector's samples.
    telling = b"\n".join(line for line in payload.split(b"\n") if not line.isascii())[:_EVIDENCE_BYTES]
    found = from_bytes(telling, steps=20, chunk_size=2048, cp_isolation=_USUAL)
    usable = [match for match in found if _decodes(payload, match.encoding)]
    if not usable:
        return None
    return "cp1252" if _is_western(usable, telling) else usable[0].encoding


def _is_western(matches: list, telling: bytes) -> bool:
    """Whether cp1252 explains the bytes about as well as the best match: then it is what was meant, as on the web.

    The detector prefers cp1250 (Central Europe), which differs in few letters, for much too little.
    """
    best = matches[0]
    if _decodes(telling, "cp1252") and telling.decode("cp1252") == telling.decode(best.encoding):
        return True
    margin = 0.1 if best.encoding in ("cp1250", "iso8859_2") else 0.03
    return any(match.encoding == "cp1252" and match.chaos <= best.chaos + 0.05
               and match.coherence >= best.coherence - margin for match in matches)


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
