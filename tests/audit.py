"""Asks PyPI whether what is pinned has known vulnerabilities: `make audit`.

Where its service cannot be asked, that is said and no failure: nobody knows more than before.
pip-audit itself calls packages clean that the service did not know.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PINNED = Path(__file__).parents[1] / "constraints.txt"
# Findings that we live with: the id, and why it does no harm here.
ACCEPTED: Mapping[str, str] = {}


def main() -> int:
    """Audit, print what was found, and return 1 for what nobody has accepted."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINNED), "--format", "json"]
    quietly = ["--no-deps", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run([*command, *quietly], capture_output=True, text=True)
    if not done.stdout.strip():
        print("Not audited: the vulnerability service could not be asked.", done.stderr[-500:])
        return 0
    lines, status = judge(json.loads(done.stdout), ACCEPTED)
    print(*lines, sep="\n")
    return status


def judge(document: Mapping[str, Any], accepted: Mapping[str, str]) -> tuple[list[str], int]:
    """Return what to say of pip-audit's findings, and the exit status."""
    packages = document["dependencies"]
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        reason = packages[0]["skip_reason"] if packages else "nothing is pinned"
        return [f"Not audited: the service knows none of {len(packages)} packages ({reason})."], 0
    lines = [
        f"{package['name']} was not audited: {package['skip_reason']}"
        for package in packages
        if "skip_reason" in package
    ]
    status = 0
    for package in known:
        for found in package["vulns"]:
            names = [found["id"], *found.get("aliases", [])]
            reason = next((accepted[name] for name in names if name in accepted), None)
            status = status if reason else 1
            fixed = ", ".join(found["fix_versions"]) or "no release"
            what = f"accepted: {reason}" if reason else f"fixed in {fixed}"
            lines.append(f"{package['name']} {package['version']}: {' '.join(names)}; {what}")
    return [*lines, f"{len(known)} packages audited."], status


if __name__ == "__main__":
    sys.exit(main())
