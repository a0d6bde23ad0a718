"""The text part that is made from HTML."""

import pytest

from tasks.plain_text import text_of


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h1>Hi</h1><p>A &amp; b<br>c</p>", "Hi\n\nA & b\nc\n"),
        ("<p>a\n  b</p>", "a b\n"),
        ('<a href="https://x.example/?a=1&amp;b=2">here</a>.', "here (https://x.example/?a=1&b=2).\n"),
        ("<a href='#top'>up</a> <a name=x>there</a>", "up there\n"),
        ("<ul><li>one</li><li>two</li></ul>", "- one\n- two\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n"),
        ("<head><title>t</title></head><style>p{}</style><script>if (a<b) x</script>seen", "seen\n"),
        ("a<!-- <b>hidden</b> -->b", "ab\n"),
        ("<!DOCTYPE html>a", "a\n"),
        ("1 < 2 and 3 > 2, 1 << 4", "1 < 2 and 3 > 2, 1 << 4\n"),
        ("<a href=x><img src=y alt='Our shop'></a>&nbsp;&nbsp;b", "Our shop (x) b\n"),
        ("&lt;b&gt; &eacute;", "<b> é\n"),
        ("", "\n"),
        ("<!-- never closed <p>x</p>", "\n"),
    ],
)
def test_it_says_what_the_html_says(html, text):
    assert text_of(html) == text


@pytest.mark.parametrize(
    "piece",
    ["<!--", "<a href='", "<", "&", "<style>", " \n", "<![CDATA[", "<p", "</", "<a href=", "<img alt"],
)
def test_what_is_never_closed_takes_no_longer_for_it(piece):
    # Two million characters: whatever takes the square of that does not end within the suite's time.
    assert text_of(piece * (2_000_000 // len(piece))).endswith("\n")
