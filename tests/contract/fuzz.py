"""Holds the service to its own OpenAPI document with schemathesis: `make fuzz`.

A real server, with PostgreSQL and Redis and rows of every kind, is asked for everything that the
document allows and for much that it does not: alone, then in sequences that use what earlier
answers named. No answer may be a 5xx, have a status that the document does not name, or be of
another shape.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app import migrate
from app.embedded import run_services
from app.keys.service import ID_LENGTH, Scope
from app.settings import ApiSettings, inherited_environment
from tests.app.test_tenants_isolation import CANARY, make_theirs
from tests.conftest import Api, running_api
from tests.factories import PEPPER, make_model_folder
from tests.receiver import RECEIVER_HOST

HERE = Path(__file__).parent
MODEL = "tiny-llama"
SEED = 1
SHORT_S, LONG_S = 200, 3600
THINGS = 4  # of each kind: some are deleted on the way


def main() -> int:
    """Fuzz, and return schemathesis' exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=int, default=SHORT_S, help=f"{SHORT_S}; {LONG_S} is long")
    parser.add_argument("--seed", type=int, default=SEED)
    asked, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="basin-fuzz-") as folder:
        scratch = Path(folder)
        with served(scratch) as api:
            status = fuzz(api, scratch, ["--seed", str(asked.seed), *more], seconds=asked.seconds)
        log = (scratch / "api.log").read_text()
    if faults := re.findall(r"(?m)^.*(?:Traceback|request\.failed).*$", log):
        print(log[-20_000:], f"The server's log has {len(faults)} faults.", file=sys.stderr)
    return status or int(bool(faults))


@contextmanager
def served(scratch: Path) -> Iterator[Api]:
    """Run the API as everybody does, but with no limit on requests and no worker."""
    make_model_folder(scratch / "models" / MODEL)
    with run_services(scratch / "data") as services:
        migrate.upgrade(services.database_url)
        settings = ApiSettings(
            database_url=services.database_url,
            redis_url=services.redis_url,
            key_pepper=PEPPER,
            models_dir=scratch / "models",
            data_dir=scratch / "worker",
            requests_per_minute=0,
            webhook_allow=f"http://{RECEIVER_HOST}/32",
        )
        with running_api(settings, scratch / "api.log") as api:
            yield api


def fuzz(api: Api, scratch: Path, arguments: list[str], *, seconds: int) -> int:
    """Run schemathesis against a server, with the names of what is there."""
    things = [make_theirs(api).ids for _ in range(THINGS)]
    key = api.key(f"{CANARY}-org", Scope.OPERATOR)
    config = scratch / "schemathesis.toml"
    config.write_text((HERE / "schemathesis.toml").read_text() + named(things))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)]
    run = ["run", f"{api.url}/openapi.json", "--checks", "all", "--max-time", str(seconds)]
    environment = inherited_environment() | {
        "BASIN_FUZZ_KEY": key,
        "BASIN_FUZZ_KEY_ID": key[3 : 3 + ID_LENGTH],
        "BASIN_FUZZ_ORGANIZATION_ID": things[0]["organization_id"],
        "SCHEMATHESIS_HOOKS": "tests.contract.fuzz_hooks",
    }
    return subprocess.run([*command, *run, *arguments], env=environment).returncode


def named(things: list[dict[str, str]]) -> str:
    """Return the part of the configuration that names what there is, by parameter."""
    text = ["[dictionaries]", f'models = {{ values = ["{MODEL}"] }}']
    text += [f"{name} = {{ values = {[each[name] for each in things]} }}" for name in things[0]]
    text += ["[parameters]"]
    places = {f"path.{name}": name for name in things[0]}
    places |= {"body.training_file": "file_id", "body.model": "models"}
    text += [
        f'"{place}" = {{ dictionary = "{name}", probability = 0.6 }}'
        for place, name in places.items()
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
