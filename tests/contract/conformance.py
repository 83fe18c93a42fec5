"""Runs the openai package's own tests of our calls against a real server: `make conformance`.

The tests come with the package's source distribution, which is fetched and never kept in git. The
server is the one that everybody runs, on a database of its own; only what it holds is made for the
tests (see `tests.contract.placeholders`).
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app import migrate
from app.embedded import run_services
from app.settings import ApiSettings, inherited_environment
from app.tars import unpack
from tests.conftest import environment
from tests.contract.placeholders import MODELS, make_model
from tests.factories import PEPPER
from tests.waiting import answers, free_port, wait_until

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".basin" / "conformance"
RESOURCES = "tests/api_resources"
TESTS = ("fine_tuning", "test_files.py", "test_uploads.py", "uploads", "test_models.py")


def main() -> int:
    """Run the tests and return pytest's exit status; arguments go on to pytest."""
    package = fetch(KEPT)
    scratch = tempfile.TemporaryDirectory(prefix="basin-conformance-")
    with scratch as folder, served(Path(folder)) as url:
        return run_tests(package, url, sys.argv[1:])


def fetch(folder: Path) -> Path:
    """Return the unpacked source of the pinned openai package, from the index the first time."""
    pinned = re.search(r"(?m)^openai==(\S+)$", (ROOT / "constraints.txt").read_text())
    assert pinned, "constraints.txt pins no openai"
    name = f"openai-{pinned[1]}"
    archive = folder / f"{name}.tar.gz"
    if not archive.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        source = ["--no-binary", "openai", "--dest", str(folder), f"openai=={pinned[1]}"]
        subprocess.run([*download, *source], check=True)
    unpack(archive, folder)
    return folder / name


@contextmanager
def served(scratch: Path) -> Iterator[str]:
    """Run the API, with PostgreSQL and Redis, and no worker; yields its base URL."""
    models = scratch / "models"
    for name in MODELS:
        make_model(models / name)
    with run_services(scratch / "data") as services:
        migrate.upgrade(services.database_url)
        settings = ApiSettings(
            database_url=services.database_url,
            redis_url=services.redis_url,
            key_pepper=PEPPER,
            models_dir=models,
            data_dir=scratch / "worker",
            requests_per_minute=0,  # a test never waits
        )
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "tests.contract.placeholders:app_from_env"]
        with (scratch / "api.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--factory", "--port", str(port), "--log-level", "warning"],
                cwd=ROOT,
                env=environment(settings),
                stderr=log,
            )
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"), timeout_s=90)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(10)
            print((scratch / "api.log").read_text()[-5000:], file=sys.stderr)


def run_tests(package: Path, url: str, arguments: list[str]) -> int:
    """Run them in a process and a folder of their own: their package is called tests, too."""
    wanted = [f"{RESOURCES}/{name}" for name in TESTS]
    # One after the other, as each is given the same rows; and not with their project's options.
    options = ["--override-ini", "addopts=", "-p", "no:cacheprovider", "-q", "--tb=short"]
    settings = {"TEST_API_BASE_URL": url, "PYTHONPATH": ""}
    command = [sys.executable, "-m", "pytest", *options, *wanted, *arguments]
    return subprocess.run(command, cwd=package, env=inherited_environment() | settings).returncode


if __name__ == "__main__":
    sys.exit(main())
