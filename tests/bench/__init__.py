"""The benchmarks: what the machine allows, what others send, and what this service sends, side by side."""
