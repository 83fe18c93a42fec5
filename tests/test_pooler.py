"""Behind a pooler of transactions, as PgBouncer is used where connections are many."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from app.db import address
from tests.chaos.cluster import Cluster, running
from tests.chaos.invariants import BODY, assert_every_step_is_told_once
from tests.waiting import within

PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
PGBOUNCER = shutil.which("pgbouncer", path=PLACES)
CONNECTIONS = 4
PORT = 6432


def test_a_url_may_say_that_no_statements_are_prepared():
    url, arguments = address("postgresql+psycopg://basin@db/basin?prepare_threshold=none")

    assert url.render_as_string() == "postgresql+psycopg://basin@db/basin"
    assert arguments == {"prepare_threshold": None}


def test_a_url_that_says_nothing_is_left_alone():
    url, arguments = address("postgresql+psycopg:///basin?host=/tmp/sockets")

    assert url.query == {"host": "/tmp/sockets"} and arguments == {}


@pytest.fixture
def cluster(models_dir: Path) -> Iterator[Cluster]:
    if not PGBOUNCER:
        pytest.skip("needs pgbouncer")
    with running(models_dir) as found:
        direct = make_url(found.services.database_url)
        sockets = Path(str(direct.query["host"]))
        folder = found.root / "pgbouncer"
        owner = sockets.stat().st_uid  # PgBouncer does not run as root
        with pooler(folder, sockets, owner):
            pooled = direct.update_query_dict(
                {"host": str(folder), "port": str(PORT), "prepare_threshold": "none"}
            )
            found.settings = {
                "BASIN_DATABASE_URL": pooled.render_as_string(hide_password=False),
                "BASIN_DIRECT_DATABASE_URL": found.services.database_url,
            }
            found.kill_api()
            found.start_api()
            try:
                yield found
            finally:
                for worker in found.workers:
                    found.kill_worker(worker)
                found.kill_api()


@pytest.mark.timeout(300)
def test_a_job_is_submitted_watched_and_trained_through_a_pooler_of_transactions(cluster: Cluster):
    cluster.start_worker()
    job_id = cluster.submit(**BODY)
    with (
        cluster.http as http,
        http.stream("GET", f"/fine_tuning/jobs/{job_id}/stream", timeout=120) as stream,
    ):
        events = [line for line in stream.iter_lines() if line.startswith("event:")]
    job = cluster.wait(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert events.count("event: metrics") > 10
    assert_every_step_is_told_once(cluster, job_id)
    assert len(cluster.weights(job_id)) == 64
    assert clients(cluster) > servers(cluster) > 0


def clients(cluster: Cluster) -> int:
    return console(cluster, "SHOW CLIENTS")


def servers(cluster: Cluster) -> int:
    return console(cluster, "SHOW SERVERS")


def console(cluster: Cluster, command: str) -> int:
    """How many rows PgBouncer's own console answers with, of our database's."""
    with psycopg.connect(
        host=str(cluster.root / "pgbouncer"),
        port=PORT,
        user="basin",
        dbname="pgbouncer",
        autocommit=True,
    ) as connection:
        cursor = psycopg.ClientCursor(connection)  # the console knows the simple protocol alone
        cursor.execute(command)
        names = [column.name for column in cursor.description]
        return sum(row[names.index("database")] == "basin" for row in cursor)


@contextmanager
def pooler(folder: Path, sockets: Path, owner: int) -> Iterator[None]:
    """PgBouncer in its mode `transaction`, with few connections to the server."""
    folder.mkdir()
    os.chown(folder, owner, -1)
    users, ini, log = folder / "users.txt", folder / "pgbouncer.ini", folder / "log"
    users.write_text('"basin" ""\n')
    ini.write_text(f"""
[databases]
basin = host={sockets} user=basin
[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = {folder}
auth_type = trust
auth_file = {users}
admin_users = basin
pool_mode = transaction
default_pool_size = {CONNECTIONS}
""")
    with log.open("wb") as output:
        process = subprocess.Popen([PGBOUNCER, ini], user=owner, stdout=output, stderr=output)
    try:
        assert within(30, (folder / f".s.PGSQL.{PORT}").exists), log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)
