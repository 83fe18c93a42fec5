"""What schemathesis must not do: revoke the key it comes with, or limit what it may do itself.

And what it must not ask, as nobody can see the difference: a query holds text alone, so that a
number in a metric's name's place is a name.
"""

import os

import schemathesis
from schemathesis import Case, HookContext


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    named = case.path_parameters
    limits_itself = (
        case.path.endswith("/limits")
        and named.get("organization_id") == os.environ["BASIN_FUZZ_ORGANIZATION_ID"]
    )
    ends_itself = named.get("key_id") == os.environ["BASIN_FUZZ_KEY_ID"]
    return not (limits_itself or ends_itself or has_no_names(case))


def has_no_names(case: Case) -> bool:
    """Return whether a query for metrics has in place of names what becomes names as text."""
    if not case.path.endswith("/metrics") or "name" not in case.query:
        return False
    names = case.query["name"]
    return not isinstance(names, list) or not all(isinstance(name, str) for name in names)
