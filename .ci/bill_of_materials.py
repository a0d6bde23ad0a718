# ruff: noqa: INP001 -- a script
"""Prints what is installed in this environment as a CycloneDX 1.5 bill of materials."""

import json
import sys
from importlib.metadata import distributions


def main() -> None:
    found = sorted({(each.name.lower().replace("_", "-"), each.version) for each in distributions()})
    components = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in found
    ]
    json.dump(
        {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components},
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
