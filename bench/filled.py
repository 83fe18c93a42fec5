"""A Basin with as many jobs, events and metrics as somebody has after years, made in SQL.

Every row is shaped as the service itself writes it; a job is a copy of one that was submitted. A
tenth of the jobs belongs to other organizations; most are over, `WAITING` wait and `RUNNING` run.
Indexes over metrics and events are built after the rows, as a restore of a backup builds them.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.cluster import JOBS as JOBS_PATH
from tests.chaos.cluster import Cluster, running

MODEL = "tiny-llama"
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
NEVER_REFUSED = "1000000000"  # requests a minute: they are counted, and none is one too many
WAITING, RUNNING = 200, 8
POINTS_A_JOB, EVENTS_A_JOB = 100, 10
LONG_STEPS = 100_000  # of the one job whose curve is read
NAMES = ["train_loss", "learning_rate", "grad_norm", "entropy"]
BUILT_AFTERWARDS = ["metrics", "job_events"]

JOB_ID = """
CREATE OR REPLACE FUNCTION pg_temp.job_id(n bigint) RETURNS text IMMUTABLE LANGUAGE sql
RETURN 'ftjob-' || left(md5(n::text) || md5((-n)::text), 24)
"""
ORGANIZATIONS = """
INSERT INTO organizations (id, name)
SELECT 'org-other-' || n, 'other-' || n FROM generate_series(0, 9) n ON CONFLICT DO NOTHING
"""
JOBS = """
INSERT INTO jobs SELECT made.*
FROM jobs AS pattern, generate_series(%(first)s::bigint, %(last)s) AS n,
LATERAL (SELECT n <= %(waiting)s AS waits,
  n > %(waiting)s AND n <= %(waiting)s + %(running)s AS runs, n %% 20 = 3 AS fails) AS of,
LATERAL jsonb_populate_record(pattern, jsonb_build_object(
  'id', pg_temp.job_id(n),
  'organization_id',
    CASE n %% 10 WHEN 0 THEN 'org-other-' || n / 10 %% 10 ELSE pattern.organization_id END,
  'status', CASE WHEN waits THEN 'queued' WHEN runs THEN 'running'
    WHEN fails THEN 'failed' ELSE 'succeeded' END,
  'user_metadata', jsonb_build_object('team', 'team-' || n %% 7, 'run', n::text),
  'spec', jsonb_set(pattern.spec, '{job_id}', to_jsonb(pg_temp.job_id(n))),
  'attempt', 1, 'step', 50, 'total_steps', 100,
  'fine_tuned_model', CASE WHEN NOT (waits OR runs OR fails) THEN 'ft:tiny:org::' || n END,
  'created_at', now() - n * interval '20 seconds',
  'queued_at', now() - n * interval '20 seconds',
  'started_at', CASE WHEN NOT waits THEN now() - n * interval '20 seconds' END,
  'progress_at', CASE WHEN NOT waits THEN now() - n * interval '10 seconds' END,
  'finished_at', CASE WHEN NOT (waits OR runs) THEN now() - n * interval '10 seconds' END,
  'lease_until', CASE WHEN runs THEN now() + interval '1 day' END
)) AS made
WHERE pattern.id = %(pattern)s
"""
EVENTS = """
INSERT INTO job_events (id, job_id, level, message, type, data, created_at)
SELECT 'ftevent-' || left(md5(n || '/' || line), 24), pg_temp.job_id(n), 'info',
  'Step ' || line || '/100: train_loss=0.5',
  CASE line %% 2 WHEN 0 THEN 'metrics' ELSE 'message' END,
  jsonb_build_object('step', line, 'total_steps', 100, 'train_loss', 0.5),
  now() - n * interval '20 seconds' + line * interval '1 second'
FROM generate_series(%(first)s::bigint, %(last)s) n, generate_series(1, %(events)s) line
"""
METRICS = """
INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)
SELECT id, name, step, 1, step, random(), now()
FROM (SELECT pg_temp.job_id(n) AS id FROM generate_series(%(first)s::bigint, %(last)s) n) AS ids,
  unnest(%(names)s::text[]) name,
  generate_series(1, %(points)s / cardinality(%(names)s::text[])) step
"""
CURVE = """
INSERT INTO metrics (job_id, name, step, attempt, seq, value, ts)
SELECT %(pattern)s, 'train_loss', step, 1, step, random(), now()
FROM generate_series(1, %(steps)s) step
"""
INDEXES = """
SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname),
  format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s',
    conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE contype = 'p' AND conrelid = ANY(%(tables)s::regclass[])
UNION ALL
SELECT format('DROP INDEX %%s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index WHERE NOT indisprimary AND indrelid = ANY(%(tables)s::regclass[])
"""
IDS = """
SELECT jobs.id FROM jobs JOIN jobs AS pattern USING (organization_id)
WHERE pattern.id = %s AND jobs.status = %s AND jobs.id <> pattern.id ORDER BY jobs.id LIMIT %s
"""


@dataclass
class Filled:
    """A running Basin, the job that the others are copied from, and how many those are.

    The pattern has a curve of `LONG_STEPS` points.
    """

    cluster: Cluster
    pattern: str
    jobs: int = 0

    def grow(self, jobs: int) -> None:
        """Put in what is missing up to so many jobs, with their events and metrics."""
        with self.connect() as connection, _without_indexes(connection):
            fill(connection, self.pattern, first=self.jobs + 1, last=jobs)
            if not self.jobs:
                connection.execute(CURVE, {"pattern": self.pattern, "steps": LONG_STEPS})
        with self.connect() as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        self.jobs = jobs

    def paths(self, status: str, *, most: int = 1000) -> list[str]:
        """Return where some jobs of the caller's with a status are found."""
        found = self.cluster.sql(IDS, self.pattern, status, most)
        return [f"/v1{JOBS_PATH}/{job_id}" for (job_id,) in found]

    @property
    def training_file(self) -> str:
        """What the pattern was to be trained on."""
        query = "SELECT training_file_id FROM jobs WHERE id = %s"
        return str(self.cluster.sql(query, self.pattern)[0][0])

    def forget_submitted(self) -> None:
        """Take what was submitted since out of the queue, so that it is as long as before."""
        self.cluster.sql(
            "UPDATE jobs SET status = 'cancelled', finished_at = now()"
            " WHERE status = 'queued' AND NOT coalesce(user_metadata ? 'run', false)"
        )

    @property
    def curve(self) -> str:
        """Where the job with the long curve is found."""
        return f"/v1{JOBS_PATH}/{self.pattern}"

    def connect(self) -> psycopg.Connection[Any]:
        url = self.cluster.services.database_url.replace("postgresql+psycopg://", "postgresql://")
        return psycopg.connect(url, autocommit=True)


@contextmanager
def filled(jobs: int) -> Iterator[Filled]:
    """Start a Basin of its own and fill it; a worker it has none."""
    with (
        tempfile.TemporaryDirectory() as models,
        running(Path(models), {"BASIN_REQUESTS_PER_MINUTE": NEVER_REFUSED}) as cluster,
    ):
        offer_model(Path(models))
        found = Filled(cluster, cluster.submit())
        over = "UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE id = %s"
        cluster.sql(over, found.pattern)
        found.grow(jobs)
        yield found


def fill(
    connection: psycopg.Connection[Any],
    pattern: str,
    *,
    first: int,
    last: int,
    points: int = POINTS_A_JOB,
) -> None:
    """Copy a job, under the numbers from `first` to `last`, and tell their stories."""
    values = {
        "first": first,
        "last": last,
        "pattern": pattern,
        "waiting": WAITING,
        "running": RUNNING,
        "events": EVENTS_A_JOB,
        "points": points,
        "names": NAMES,
    }
    # No triggers: they would look up the job of each metric, and tell watchers of it.
    connection.execute("SET session_replication_role = replica")
    connection.execute("SET maintenance_work_mem = '512MB'")
    connection.execute(JOB_ID)
    for statement in (ORGANIZATIONS, JOBS, EVENTS, METRICS):
        connection.execute(statement, values)


def offer_model(models: Path) -> None:
    """Write as much of a base model as the API reads."""
    folder = models / MODEL
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))


@contextmanager
def _without_indexes(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Take off the indexes of the two large tables, and put them on again."""
    found = connection.execute(INDEXES, {"tables": BUILT_AFTERWARDS}).fetchall()
    for drop, _ in found:
        connection.execute(drop)
    yield
    for _, make in found:
        connection.execute(make)
