"""What is made of pip-audit's findings."""

from typing import Any

from tests.audit import judge

CLEAN = {"name": "good", "version": "1.0", "vulns": []}
BAD = {
    "name": "bad",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["1.1"]}],
}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found"}


def judged(*packages: Any) -> tuple[str, int]:
    lines, status = judge({"dependencies": list(packages)}, {})
    return "\n".join(lines), status


def test_a_finding_fails_and_says_where_it_is_fixed():
    said, status = judged(CLEAN, BAD)

    assert status == 1 and "bad 1.0: PYSEC-2026-1 CVE-2026-1; fixed in 1.1" in said


def test_a_finding_that_was_accepted_by_any_of_its_names_passes_with_the_reason():
    lines, status = judge({"dependencies": [BAD]}, {"CVE-2026-1": "never called"})

    assert status == 0 and "accepted: never called" in lines[0]


def test_a_package_that_nobody_knows_is_told():
    said, status = judged(CLEAN, UNKNOWN)

    assert status == 0 and "unknown was not audited" in said and "1 packages audited" in said


def test_a_service_that_knows_nothing_has_audited_nothing():
    said, status = judged(UNKNOWN)

    assert status == 0 and said.startswith("Not audited")
