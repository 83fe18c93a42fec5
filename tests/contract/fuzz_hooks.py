"""What schemathesis must not do: revoke the key it comes with, or limit what it may do itself."""

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
    return named.get("key_id") != os.environ["BASIN_FUZZ_KEY_ID"] and not limits_itself
