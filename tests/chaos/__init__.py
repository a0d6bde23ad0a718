"""Faults under load: what was promised is checked from outside, by the client's 202s, the sink's log and the rows."""
