"""The containers are what an operator may rely on: checked from the files, without an engine."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ApiSettings, Settings, inherited_environment
from worker.supervisor import RELAY_S, STOP_GRACE_S

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
IMAGES = ("app", "worker")
OURS = ("migrate", "api", "sweep", "worker", "worker-gpu")
# What a service may read beside our settings: libpq's password, uvicorn's proxies, the images' own,
# and what the API passes on to the process that sends metrics.
PASSED_ON = {
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "SSL_CERT_FILE",
}
FOREIGN = PASSED_ON | {
    "FORWARDED_ALLOW_IPS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "PGPASSWORD",
    "POSTGRES_DB",
    "POSTGRES_INITDB_ARGS",
    "POSTGRES_PASSWORD",
    "POSTGRES_USER",
}
SECRET = re.compile(r"PASSWORD|PEPPER|SECRET|TOKEN|KEY")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}")
SECRETS = {"POSTGRES_PASSWORD": "p", "BASIN_KEY_PEPPER": "k"}


@cache
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def text() -> str:
    """The file without its comments."""
    return re.sub(r"(?m)(^|\s)#.*$", "", COMPOSE.read_text())


def expanded(value: str, **environment: str) -> str:
    """What Compose makes of ${NAME:-default}."""
    return VARIABLE.sub(lambda found: environment.get(found[1]) or found[3] or "", value)


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile: its word, its --flags, and the rest."""

    word: str
    flags: tuple[str, ...]
    rest: str

    @property
    def words(self) -> list[str]:
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


def stages(image: str) -> list[list[Instruction]]:
    """The stages of an image, each from its FROM on."""
    found: list[list[Instruction]] = []
    for instruction in instructions((ROOT / image / "Dockerfile").read_text()):
        if instruction.word == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def instructions(dockerfile: str) -> Iterator[Instruction]:
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, *words = line.split() or [""]
        if not word:
            continue
        flags = tuple(word for word in words if word.startswith("--"))
        flags = flags if word in {"COPY", "RUN", "HEALTHCHECK", "FROM"} else ()
        leading = tuple(flag for flag, given in zip(flags, words, strict=False) if flag == given)
        rest = line.split(None, 1 + len(leading))[1 + len(leading)]
        yield Instruction(word, leading, rest)


def copied(image: str) -> list[str]:
    """What an image takes from the repository."""
    first = stages(image)[0]
    return [source for step in first if step.word == "COPY" for source in step.words[:-1]]


def health_check(image: str) -> Instruction:
    return next(step for step in stages(image)[-1] if step.word == "HEALTHCHECK")


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the top level from the builder: the last rule wins."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if rule and not rule.startswith("#") and fnmatch(path, rule.removeprefix("!")):
            verdict = not rule.startswith("!")
    return verdict


def valid(path: Path) -> bool:
    """Whether the Compose specification's own schema accepts a file."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(path)], capture_output=True).returncode == 0


def test_the_file_follows_the_compose_specification():
    assert valid(COMPOSE)


def test_the_specification_refuses_a_misspelt_key(tmp_path: Path):
    path = tmp_path / "docker-compose.yml"
    path.write_text(COMPOSE.read_text().replace("depends_on", "depend_on"))

    assert not valid(path)


def test_compose_itself_accepts_the_file(tmp_path: Path):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose here")
    argv = [docker, "compose", "--file", str(COMPOSE), "--profile", "gpu"]
    nothing = tmp_path / "empty.env"
    nothing.touch()
    command = [*argv, "--env-file", str(nothing), "config", "--quiet"]
    environment = {k: v for k, v in inherited_environment().items() if k not in SECRETS}

    without = subprocess.run(command, env=environment, capture_output=True, text=True)
    with_secrets = subprocess.run(command, env=environment | SECRETS, capture_output=True)

    assert without.returncode and "openssl rand" in without.stderr
    assert with_secrets.returncode == 0, with_secrets.stderr


def test_every_part_of_the_service_is_there():
    assert {"postgres", "redis", "migrate", "api", "sweep", "worker", "worker-gpu"} == set(
        services()
    )


def test_a_secret_has_no_default_and_says_how_to_make_one():
    secrets = [found for found in VARIABLE.finditer(text()) if SECRET.search(found[1])]

    assert {found[1] for found in secrets} == set(SECRETS)
    assert all(found[2] == ":?" and "openssl rand" in found[3] for found in secrets)


def test_no_secret_is_written_down():
    given = [
        value
        for service in services().values()
        for name, value in service.get("environment", {}).items()
        if SECRET.search(name) and value is not None  # without one it is passed on
    ]

    # Without a value: passed on from .env where it is there.
    assert given and all(value is None or VARIABLE.fullmatch(value) for value in given)
    assert not re.search(r"://\w*:[^@\s]*@", text()), "a password in a URL"


def test_the_example_names_what_compose_reads_and_gives_no_secret():
    example = dict(re.findall(r"(?m)^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text()))
    read = {found[1] for found in VARIABLE.finditer(text())}
    passed_on = {
        name
        for service in services().values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }

    assert set(example) == read | passed_on | {"COMPOSE_PROFILES"}
    assert {example[name] for name in SECRETS} == {""}


def test_what_others_wait_for_can_be_waited_for():
    for service in services().values():
        for name, waited in service.get("depends_on", {}).items():
            if waited["condition"] == "service_healthy":
                assert services()[name]["healthcheck"]["test"]
            else:
                assert waited["condition"] == "service_completed_successfully"
                assert services()[name]["restart"] == "no"


def test_everything_that_stays_is_checked_and_started_again():
    staying = [service for name, service in services().items() if name != "migrate"]

    assert all(service["healthcheck"]["test"] for service in staying)
    assert {service["restart"] for service in staying} == {"unless-stopped"}


def test_api_and_workers_wait_for_the_migrated_database():
    for name in ("api", "worker", "worker-gpu"):
        waited = services()[name]["depends_on"]

        assert waited["migrate"]["condition"] == "service_completed_successfully"
        assert waited["postgres"]["condition"] == "service_healthy"


def test_only_the_api_has_a_port_and_only_on_loopback_unless_asked():
    published = {name: service.get("ports", []) for name, service in services().items()}

    assert [name for name, ports in published.items() if ports] == ["api"]
    assert [expanded(port) for port in published["api"]] == ["127.0.0.1:8000:8000"]
    opened = [expanded(port, BASIN_BIND="0.0.0.0", BASIN_PORT="80") for port in published["api"]]
    assert opened == ["0.0.0.0:80:8000"]


def test_database_and_broker_are_on_the_internal_network_alone():
    assert compose()["networks"]["inside"]["internal"] is True
    assert {tuple(services()[name]["networks"]) for name in ("postgres", "redis")} == {("inside",)}


def test_no_container_can_do_more_than_it_needs():
    for service in services().values():
        assert service["cap_drop"] == ["ALL"] and not service.get("cap_add")
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["read_only"] is True and "/tmp" in service["tmpfs"]
        assert not service.get("privileged")
        assert "build" in service or service["user"] not in {"root", "0"}


def test_base_models_are_read_only_and_found_where_the_settings_say():
    for name in ("api", "worker", "worker-gpu"):
        mounts = [expanded(volume).split(":") for volume in services()[name]["volumes"]]

        assert ["./models", services()[name]["environment"]["BASIN_MODELS_DIR"], "ro"] in mounts


def test_what_must_outlive_a_container_is_on_a_named_volume():
    stages_env = " ".join(step.rest for step in stages("worker")[-1] if step.word == "ENV")
    data = re.search(r"BASIN_DATA_DIR=(\S+)", stages_env)[1]

    assert f"worker:{data}" in services()["worker"]["volumes"]
    assert f"worker:{data}" in services()["worker-gpu"]["volumes"]
    assert "postgres:/var/lib/postgresql" in services()["postgres"]["volumes"]
    assert {"postgres", "worker"} == set(compose()["volumes"])


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_a_worker_is_given_the_time_to_write_a_checkpoint(name: str):
    grace_s = seconds(services()[name]["stop_grace_period"])

    assert grace_s >= 60 and grace_s > STOP_GRACE_S + 10 * RELAY_S


def test_gpus_are_reserved_only_where_they_were_asked_for():
    with_gpus = [
        name
        for name, service in services().items()
        if service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    ]

    assert with_gpus == ["worker-gpu"] and services()["worker-gpu"]["profiles"] == ["gpu"]
    assert services()["worker-gpu"]["shm_size"] and not services()["worker"].get("profiles")
    assert services()["worker"]["environment"]["BASIN_DEVICES"] == "cpu"


def test_the_environment_consists_of_settings_that_exist():
    for name, service in services().items():
        known = (ApiSettings if name == "api" else Settings).model_fields
        fields = {f"BASIN_{field.upper()}" for field in known}
        required = {f"BASIN_{key.upper()}" for key, field in known.items() if field.is_required()}
        names = set(service.get("environment", {}))

        assert names <= fields | FOREIGN
        assert name not in OURS or required <= names


def test_the_api_alone_gets_what_it_passes_on():
    given = {
        name: PASSED_ON & set(each.get("environment", {})) for name, each in services().items()
    }

    assert {name: passed for name, passed in given.items() if passed} == {"api": PASSED_ON}


@pytest.mark.parametrize("secret", ["BASIN_KEY_PEPPER", "BASIN_SECRETS_KEY"])
def test_only_the_api_knows_the_pepper_and_what_secrets_are_sealed_with(secret: str):
    knowing = {name for name in services() if secret in services()[name].get("environment", {})}

    assert knowing == {"api"}


def test_images_have_a_version_and_no_registry():
    named = [service["image"] for service in services().values() if "image" in service]
    bases = [stage[0].words[0] for image in IMAGES for stage in stages(image)]

    for image in named + bases:
        assert re.fullmatch(r"[a-z]+:\d[\w.-]*", image), image
    assert {base.rpartition("-")[0] for base in bases} == {"python:3.12-slim"}
    for path in (COMPOSE, *(ROOT / image / "Dockerfile" for image in IMAGES)):
        assert not re.search(r"https?://", path.read_text()), path


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_copies_exists_and_reaches_the_builder(image: str):
    for source in copied(image):
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_neither_secrets_nor_history_nor_data_reach_the_builder():
    for path in (".env", ".git", ".venv", ".basin", "models", "tests", "demo"):
        assert ignored(path), path


def test_the_migrations_are_in_the_image_that_migrates():
    assert services()["migrate"]["build"] == services()["api"]["build"]
    assert {"app", "migrations"} <= set(copied("app"))


@pytest.mark.parametrize("image", IMAGES)
def test_dependencies_are_installed_before_sources_are_copied(image: str):
    steps = [step.rest for step in stages(image)[0] if step.word in {"COPY", "RUN"}]
    install = next(n for n, step in enumerate(steps) if "--constraint constraints.txt" in step)

    assert install < next(n for n, step in enumerate(steps) if step.startswith("app "))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_with_a_number_that_is_not_root(image: str):
    users = [step.rest for step in stages(image)[-1] if step.word == "USER"]

    assert len(stages(image)) > 1 and len(users) == 1
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", users[0])


def test_the_image_of_the_api_serves_with_its_limits():
    command = next(step for step in stages("app")[-1] if step.word == "CMD")

    assert json.loads(command.rest)[:3] == ["python", "-m", "app.serve"]


def test_only_the_worker_image_installs_what_trains():
    installs = [step.rest for step in stages("app")[0] if step.word == "RUN"]
    assert not re.search(r"\b(train|zero)\b", " ".join(installs))
    assert ".[otel${EXTRAS:+,$EXTRAS}]" in " ".join(installs)
    assert services()["api"]["build"]["args"] == {"EXTRAS": "${BASIN_EXTRAS:-}"}
    trains = " ".join(step.rest for step in stages("worker")[0] if step.word == "RUN")
    assert '.[otel,train,zero$([ -n "$PIP_EXTRA_INDEX_URL" ] || echo ,gpu)]' in trains


def test_triton_finds_a_compiler_where_it_has_kernels_to_compile():
    installs = [step.rest for step in stages("worker")[-1] if step.word == "RUN"]
    assert any(
        step.startswith('[ -n "$PIP_EXTRA_INDEX_URL" ]') and "gcc libc6-dev" in step
        for step in installs
    )


@pytest.mark.parametrize(
    ("image", "service"), [("app", "api"), ("worker", "worker"), ("worker", "worker-gpu")]
)
def test_an_image_checks_its_health_as_compose_does(image: str, service: str):
    check, given = health_check(image), services()[service]["healthcheck"]
    command = json.loads(check.rest.removeprefix("CMD"))
    flags = dict(flag.removeprefix("--").split("=") for flag in check.flags)

    assert ["CMD", *command] == [part.replace("$$", "$") for part in given["test"]]
    assert flags == {
        key.replace("_", "-"): str(value) for key, value in given.items() if key != "test"
    }
