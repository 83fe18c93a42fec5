"""The migrations and the tables say the same."""

import json

import psycopg
from alembic import command
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from app.embedded import Services
from app.jobs.spec import TrainSpec
from app.migrate import alembic_config

MAIN_JOB = "c34de95f6c6a"
BEFORE_SCOPES = "6f0d3b8a2c71"
SPEC_OF_MAIN_JOB = {
    "version": 1,
    "job_id": "ftjob-1",
    "base_model": "tiny-llama",
    "method": "supervised",
    "seed": 7,
    "peft": {
        "method": "lora",
        "r": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
    },
    "perturbation": {
        "type": "mgpo",
        "rho": 0.05,
        "beta": 0.9,
        "mu": None,
        "norm": "module",
        "apn": "relative",
        "start_step": 0,
    },
    "training": {
        "n_epochs": 3,
        "max_steps": None,
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 0.0002,
        "warmup_ratio": 0.03,
        "scheduler": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 256,
        "precision": "auto",
        "gradient_checkpointing": False,
        "eval_steps": 1,
        "checkpoint_steps": 5,
    },
    "resources": {"gpus": 1, "zero_stage": 0},
    "data": {"train_sha256": "0", "train_rows": 20, "valid_sha256": None, "valid_rows": 0},
    "total_steps": 15,
}


def test_there_is_one_head(services: Services):
    script = ScriptDirectory.from_config(alembic_config(services.database_url))

    assert len(script.get_heads()) == 1


def test_no_table_lacks_a_migration(services: Services):
    command.check(alembic_config(services.database_url))


def empty_database(services: Services, name: str) -> URL:
    url = make_url(services.database_url)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return url.set(database=name)


def plain(url: URL) -> str:
    """The URL for psycopg itself."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_down_and_up_again_works(services: Services):
    url = empty_database(services, "updown")
    config = alembic_config(url.render_as_string(hide_password=False))

    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")


def test_an_admin_key_stays_one_when_keys_get_a_scope_and_when_they_lose_it(services: Services):
    url = empty_database(services, "scopes")
    config = alembic_config(url.render_as_string(hide_password=False))
    command.upgrade(config, BEFORE_SCOPES)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("INSERT INTO organizations (id, name) VALUES ('org-1', 'one')")
        connection.execute(
            "INSERT INTO api_keys (id, organization_id, name, digest, admin)"
            " VALUES ('a', 'org-1', 'a', '', true), ('b', 'org-1', 'b', '', false)"
        )

    command.upgrade(config, "head")
    with psycopg.connect(plain(url), autocommit=True) as connection:
        scopes = connection.execute("SELECT id, scope FROM api_keys ORDER BY id").fetchall()
        connection.execute(
            "INSERT INTO api_keys (id, organization_id, name, digest, scope)"
            " VALUES ('c', 'org-1', 'c', '', 'read')"
        )
    command.downgrade(config, BEFORE_SCOPES)

    assert scopes == [("a", "admin"), ("b", "write")]
    with psycopg.connect(plain(url)) as connection:
        kept = connection.execute(
            "SELECT id, admin, revoked_at IS NULL FROM api_keys ORDER BY id"
        ).fetchall()
    assert kept == [("a", True, True), ("b", False, True), ("c", False, False)]


def test_a_job_of_the_first_release_is_still_understood(services: Services):
    url = empty_database(services, "yesterday")
    config = alembic_config(url.render_as_string(hide_password=False))
    command.upgrade(config, MAIN_JOB)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("INSERT INTO organizations (id, name) VALUES ('org-1', 'one')")
        connection.execute(
            "INSERT INTO jobs (id, organization_id, status, model, training_file_id, method,"
            " hyperparameters, spec, total_steps)"
            " VALUES ('ftjob-1', 'org-1', 'queued', 'tiny-llama', 'file-1', '{}', '{}', %s, 15)",
            [json.dumps(SPEC_OF_MAIN_JOB)],
        )

    command.upgrade(config, "head")

    with psycopg.connect(plain(url)) as connection:
        (spec,) = connection.execute("SELECT spec FROM jobs").fetchone()
    understood = TrainSpec.model_validate(spec)
    assert (understood.task, understood.resources.zero_stage) == ("causal", None)
    assert understood.perturbation.rho_schedule == "constant"
    assert understood.peft.source is None and understood.evaluation.sharpness is None
