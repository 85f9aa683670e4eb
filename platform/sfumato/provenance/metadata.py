"""XMP that says that a picture is synthetic, in the terms of IPTC's photo metadata standard (2025.1).

`Iptc4xmpExt:DigitalSourceType` is the property that search engines and platforms look for; AISystemUsed,
AISystemVersionUsed and AIPromptInformation are from the same standard. The values of `sfumato:` identify the
model and its recipe. A prompt is data from anywhere: it is escaped, and letters that XML does not allow are
dropped, so that it stays the text of its element.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

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
MOST_LETTERS = 4096
"""Of a prompt. A longer one is cut: a JPEG's segment holds 64 KiB."""


def source_type(facts: Facts) -> str:
    """IPTC's digital source type: synthetic, or a composite if it was made from other pictures."""
    return COMPOSITE if facts.sources else TRAINED


def xmp(maker: Maker, facts: Facts, *, prompt: bool) -> bytes:
    """The XMP packet, UTF-8; with the texts of `facts` if `prompt` is set."""
    values = {
        "xmp:CreatorTool": f"Sfumato {__version__}",
        "Iptc4xmpExt:DigitalSourceType": source_type(facts),
        "Iptc4xmpExt:AISystemUsed": f"Sfumato {maker.model}".rstrip(),
        "Iptc4xmpExt:AISystemVersionUsed": maker.model_digest,
        "Iptc4xmpExt:AIPromptInformation": said(facts) if prompt else "",
        "sfumato:RecipeDigest": maker.recipe_digest,
        "sfumato:Seed": "" if facts.seed is None else str(facts.seed),
        "sfumato:Index": "" if facts.index is None else str(facts.index),
    }
    root = ET.Element("x:xmpmeta", {f"xmlns:{key}": space for key, space in _SPACES.items()})
    described = ET.SubElement(ET.SubElement(root, "rdf:RDF"), "rdf:Description", {"rdf:about": ""})
    for name, value in values.items():
        if value:
            ET.SubElement(described, name).text = plain(value)
    return f"{_OPEN}{ET.tostring(root, 'unicode')}{_CLOSE}".encode()


def said(facts: Facts) -> str:
    """The texts as one; each with its condition's name if there are several."""
    texts = {name: text for name, text in facts.texts.items() if text}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def plain(text: str) -> str:
    """The text in letters that XML allows, of bounded length."""
    return _NOT_XML.sub("", text)[:MOST_LETTERS]
