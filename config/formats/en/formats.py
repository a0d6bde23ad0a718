"""How the pages write times (FORMAT_MODULE_PATH): in a mail queue seconds count, and nobody reads a.m."""

DATETIME_FORMAT = "j M Y H:i:s"
SHORT_DATETIME_FORMAT = "j M H:i:s"
