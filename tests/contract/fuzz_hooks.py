"""What schemathesis must not do: revoke the key that it comes with."""

import os

import schemathesis
from schemathesis import Case, HookContext


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    return case.path_parameters.get("key_id") != os.environ["BASIN_FUZZ_KEY_ID"]
