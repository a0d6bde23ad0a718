"""The text part of a mail that has only HTML, read in one pass over it.

inscriptis pads every cell of a table to the width of the widest (245 kB of HTML became 500 million characters and
1.9 GB) and loses all that follows 255 open tags; html2text is under the GPL; the standard library's parser takes
quadratic time for what is never closed. What a mail's text needs is small.
"""

import re
from html import unescape

_SKIPPED = {"head", "style", "script", "title"}
_PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "blockquote", "hr", "pre"}
_LINES = {"br", "div", "tr", "li"}
_TAG = re.compile(r"(/?)([a-zA-Z][a-zA-Z0-9]*)")
_LINK, _ALT = (
    re.compile(rf"""\b{name}\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
    for name in ("href", "alt")
)
_SPACE = re.compile(r"[ \t\r\n\f\xa0]+")

#: A tag that plain text would hardly have.
_HTML = re.compile(
    r"<(?:!doctype\s+html|(?:html|head|body|div|p|br|hr|h[1-6]|table|tr|td|ul|ol|li|a|img|span|b|i|u|em|strong|"
    r"font|center|blockquote|pre|code|style)(?=[\s/>])[^<>]*/?)>",
    re.IGNORECASE,
)


def is_html(content: str) -> bool:
    """Whether it was meant as HTML."""
    return _HTML.search(content) is not None


def text_of(html: str) -> str:
    """What a reader without HTML should see: paragraphs, list items, what pictures show, and links with their
    addresses."""
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
            rest = piece.partition(">")[2] if piece.startswith(("!", "?")) else f"<{piece}"
            said.append("" if skipped else _plain(rest))
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
            link = _value(_LINK, attributes)
        elif name == "img":
            said.append(_value(_ALT, attributes))
        said.append(_break(name, closes=bool(closes)))
        said.append("" if skipped else _plain(rest))
    lines = [_SPACE.sub(" ", line).strip() for line in "".join(said).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _break(name: str, *, closes: bool) -> str:
    if name in _PARAGRAPHS:
        return "\n\n"
    if name == "li":
        return "" if closes else "\n- "
    if name == "tr" and closes:
        return ""
    return "\n" if name in _LINES else " " if name in ("td", "th") and not closes else ""


def _value(attribute: re.Pattern[str], attributes: str) -> str:
    found = attribute.search(attributes)
    return unescape("".join(filter(None, found.groups()))) if found else ""


def _plain(text: str) -> str:
    return unescape(_SPACE.sub(" ", text))
