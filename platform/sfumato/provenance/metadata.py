"""XMP that says that a picture is synthetic, in the terms of IPTC's photo metadata standard (2025.1).

`Iptc4xmpExt:DigitalSourceType` is the property that search engines and platforms look for; AISystemUsed,
AISystemVersionUsed and AIPromptInformation are from the same standard. The values of `sfumato:` identify the
model and its recipe. A prompt is data from anywhere: it is escaped, and letters that XML does not allow are
dropped, so that it stays the text of its element.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from PIL import Image

from sfumato.provenance.facts import Facts, Maker
from sfumato.version import __version__

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_SPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "sfumato": "https://sfumato.dev/ns/provenance/1.0/",
}
_OPEN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_CLOSE = '<?xpacket end="r"?>'
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_XMP_CHUNK = "XML:com.adobe.xmp"
NAMES = (
    "xmp:CreatorTool",
    "Iptc4xmpExt:DigitalSourceType",
    "Iptc4xmpExt:AISystemUsed",
    "Iptc4xmpExt:AISystemVersionUsed",
    "Iptc4xmpExt:AIPromptInformation",
    "sfumato:RecipeDigest",
    "sfumato:Seed",
    "sfumato:Index",
)
LARGEST = 2**20
"""Bytes of XMP that is read, at most."""
MOST_LETTERS = 4096
"""Of a prompt. A longer one is cut: a JPEG's segment holds 64 KiB."""


def read_xmp(path: Path) -> dict[str, str]:
    """The properties in a picture's XMP that `xmp` writes, by local name; empty if there is none to read.

    The file may be from anybody: nothing is fetched, and what is no XMP counts as none.
    """
    try:
        with Image.open(path) as picture:
            found = picture.info.get("xmp") or picture.info.get(_XMP_CHUNK) or b""
        content = found.encode() if isinstance(found, str) else bytes(found)
        if b"<!DOCTYPE" in content or len(content) > LARGEST:  # XMP has none; expansions come with it
            return {}
        described = ET.fromstring(content).iter(f"{{{_SPACES['rdf']}}}Description")  # noqa: S314 - as above
    except (OSError, ValueError, ET.ParseError):
        return {}
    known = {f"{{{_SPACES[space]}}}{name}": name for space, _, name in (n.partition(":") for n in NAMES)}
    return {known[each.tag]: each.text or "" for one in described for each in one if each.tag in known}


def source_type(facts: Facts) -> str:
    """IPTC's digital source type: synthetic, or a composite if it was made from other pictures."""
    return COMPOSITE if facts.sources else TRAINED


def xmp(maker: Maker, facts: Facts, *, prompt: bool) -> bytes:
    """The XMP packet, UTF-8; with the texts of `facts` if `prompt` is set."""
    values = (
        f"Sfumato {__version__}",
        source_type(facts),
        f"Sfumato {maker.model}".rstrip(),
        maker.model_digest,
        said(facts) if prompt else "",
        maker.recipe_digest,
        "" if facts.seed is None else str(facts.seed),
        "" if facts.index is None else str(facts.index),
    )
    root = ET.Element("x:xmpmeta", {f"xmlns:{key}": space for key, space in _SPACES.items()})
    described = ET.SubElement(ET.SubElement(root, "rdf:RDF"), "rdf:Description", {"rdf:about": ""})
    for name, value in zip(NAMES, values, strict=True):
        if value:
            ET.SubElement(described, name).text = plain(value)
    return f"{_OPEN}{ET.tostring(root, 'unicode')}{_CLOSE}".encode()


def said(facts: Facts) -> str:
    """The texts as one; each with its condition's name if there are several."""
    texts = {name: whole(text) for name, text in facts.texts.items() if text}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def whole(text: str) -> str:
    """The text, of bounded length, without halves of letters, which no encoding has."""
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text[:MOST_LETTERS])


def plain(text: str) -> str:
    """The text in letters that XML allows, of bounded length."""
    return _NOT_XML.sub("", text)[:MOST_LETTERS]
