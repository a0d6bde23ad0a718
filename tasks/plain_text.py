"""The text part of a mail that has only HTML.

html2text is under the GPL, inscriptis brings lxml, and the standard library's parser takes quadratic time for what is
never closed; what a mail's text needs is small, and read here in one pass.
"""

import re
from html import unescape

_SKIPPED = {"head", "style", "script", "title"}
_BREAKS = {"p": "\n\n", "h1": "\n\n", "h2": "\n\n", "h3": "\n\n", "h4": "\n\n", "ul": "\n\n", "ol": "\n\n"}
_BREAKS |= {
    "table": "\n\n",
    "blockquote": "\n\n",
    "hr": "\n\n",
    "br": "\n",
    "div": "\n",
    "tr": "\n",
    "li": "\n",
}
_TAG = re.compile(r"(/?)([a-zA-Z][a-zA-Z0-9]*)")
_LINK = re.compile(r"""\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n\f]+")


def text_of(html: str) -> str:
    """What a reader without HTML should see: paragraphs, list items, and links with their addresses."""
    first, *pieces = html.split("<")
    said, skipped, in_comment, link = [_plain(first)], "", False, ""
    for piece in pieces:
        if in_comment or piece.startswith("!--"):
            _, end, rest = piece.partition("-->")
            in_comment = not end
            said.append("" if skipped or in_comment else _plain(rest))
            continue
        found = _TAG.match(piece)
        if not found:  # a declaration, or a < that begins nothing
            said.append(
                "" if skipped else _plain(piece.partition(">")[2] if piece[:1] in "!?" else f"<{piece}")
            )
            continue
        closes, name = found[1], found[2].lower()
        if skipped and not (closes and name == skipped):
            continue
        skipped = name if name in _SKIPPED and not closes else ""
        attributes, _, rest = piece.partition(">")
        if name == "a" and closes:
            said.append(f" ({link})" if link and not link.startswith("#") else "")
            link = ""
        elif name == "a":
            address = _LINK.search(attributes)
            link = unescape("".join(filter(None, address.groups()))) if address else ""
        said.append(_BREAKS.get(name, " " if name in ("td", "th") and not closes else ""))
        said.append("- " if name == "li" and not closes else "")
        said.append("" if skipped else _plain(rest))
    lines = [_SPACE.sub(" ", line).strip() for line in "".join(said).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _plain(text: str) -> str:
    return unescape(_SPACE.sub(" ", text))
