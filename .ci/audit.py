# ruff: noqa: INP001 -- a script
"""Looks for known vulnerabilities in the locked requirements; warns where it could not look."""

import json
import subprocess
import sys


def main(requirements: str) -> int:
    """1 if a vulnerability is known, else 0: a network without an advisory service stops no release."""
    command = [
        sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", requirements,
        "--format", "json", "--progress-spinner", "off",
    ]  # fmt: skip
    audit = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- as above
    try:
        dependencies = json.loads(audit.stdout)["dependencies"]
    except ValueError:
        last = (audit.stderr.strip() or "no answer").splitlines()[-1]
        sys.stdout.write(f"warning: no advisory service answers, nothing was audited ({last})\n")
        return 0
    unseen = [found["name"] for found in dependencies if "skip_reason" in found]
    if unseen:
        sys.stdout.write(
            f"warning: the advisory service does not know {len(unseen)} of {len(dependencies)} dependencies,"
            " which were not audited\n"
        )
    vulnerable = [found for found in dependencies if found.get("vulns")]
    for found in vulnerable:
        for vulnerability in found["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            sys.stdout.write(f"{found['name']} {found['version']}: {vulnerability['id']}, fixed in {fixed}\n")
    sys.stdout.write(f"audited {len(dependencies) - len(unseen)}, vulnerable {len(vulnerable)}\n")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
