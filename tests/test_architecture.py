"""The rules of the code that no linter knows, executed."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import inherited_environment

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "worker", "demo", "migrations")
ML = {"torch", "transformers", "numpy", "datasets", "peft", "trl", "accelerate", "deepspeed"}
SERVICE = {"sqlalchemy", "psycopg", "celery", "kombu", "redis", "fastapi", "starlette", "uvicorn"}
LONGEST_FUNCTION = 60
TOP_LEVEL = {
    "app", "worker", "migrations", "tests", "demo", "bench", "docs", "docker-compose.yml",
    "pyproject.toml", "README.md", "Makefile", "constraints.txt", "CONTRIBUTING.md", "LICENSE",
    "alembic.ini",
}  # fmt: skip
# Where a module may end a transaction: Alembic's entry holds a connection of its own.
COMMITTERS = {"app/db.py", "migrations/env.py"}
ENVIRONMENT_READERS = {"app/settings.py"}
GENERATED = {"migrations/versions"}  # long lists of columns, written by Alembic

Rule = Callable[[ast.Module], list[str]]


def loaded_by(*modules: str, path: Path = ROOT) -> set[str]:
    """The top-level names that a fresh interpreter has loaded once it imported these modules."""
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    settings = {
        "BASIN_DATABASE_URL": "postgresql+psycopg://nobody@localhost/nothing",
        "BASIN_REDIS_URL": "redis://localhost:1/0",
        "BASIN_KEY_PEPPER": "a pepper for imports only",
        "BASIN_DEVICES": "cpu",
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",  # as a run has it
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=path,
        env=inherited_environment() | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def offences(rule: Rule, *, allowed: set[str] = frozenset()) -> list[str]:
    """Where a rule is broken, outside the files and folders that may."""
    found = []
    for path in modules(*PACKAGES):
        name = path.relative_to(ROOT).as_posix()
        if name not in allowed and path.parent.relative_to(ROOT).as_posix() not in allowed:
            found += [f"{name}: {what}" for what in rule(ast.parse(path.read_text()))]
    return found


def transaction_ends(module: ast.Module) -> list[str]:
    """`.commit` and `.rollback`, called or passed on."""
    return [
        f"{node.lineno} .{node.attr}"
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and node.attr in {"commit", "rollback"}
    ]


def environment_reads(module: ast.Module) -> list[str]:
    """`os.environ` and its relatives, under whatever name `os` was imported."""
    readers = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    names = {"os"}
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.asname or "os" for alias in node.names if alias.name == "os"}
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"{node.lineno} {a.name}" for a in node.names if a.name in readers]
    for node in ast.walk(module):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                if name in names and attribute in readers:
                    found.append(f"{node.lineno} {attribute}")
    return found


def without_docstring(module: ast.Module) -> list[str]:
    return ["no docstring"] if module.body and not ast.get_docstring(module) else []


def long_functions(module: ast.Module) -> list[str]:
    return [
        f"{function.name} has {lines} lines"
        for function in functions(module)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
    ]


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def strangers(listed: str) -> set[str]:
    """What does not belong on the repository's top level; dot files do."""
    top = {line.partition("/")[0] for line in listed.splitlines()}
    return {name for name in top if not name.startswith(".")} - TOP_LEVEL


@pytest.mark.parametrize(
    "module", ["app.main", "app.cli", "worker.celery_app", "worker.supervisor", "worker.tasks"]
)
def test_the_service_runs_without_the_ml_stack(module: str):
    assert not loaded_by(module) & ML


def test_the_mathematics_knows_torch_and_no_trainer():
    loaded = loaded_by(*map(dotted, modules("worker/optim")))

    assert "torch" in loaded
    assert not loaded & {"transformers", "peft", "trl", "accelerate", "datasets", "deepspeed"}


def test_the_trainer_knows_no_database_broker_or_web():
    loaded = loaded_by(*map(dotted, modules("worker/trainer")))

    assert "transformers" in loaded
    assert not loaded & SERVICE


def test_graders_run_where_there_is_no_web_and_no_database():
    """The trainer grades what it samples, in its own process."""
    assert not loaded_by("app.graders.service") & (SERVICE | ML)


def test_an_import_further_down_is_noticed(tmp_path: Path):
    (tmp_path / "innocent.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("import peft_of_sorts.sub\n")
    (tmp_path / "peft_of_sorts").mkdir()
    (tmp_path / "peft_of_sorts" / "sub.py").touch()

    loaded = loaded_by("innocent", path=tmp_path)

    assert "peft_of_sorts" in loaded and not loaded & ML


def test_package_files_are_empty():
    packages = [path for path in modules(*PACKAGES, "tests") if path.name == "__init__.py"]

    assert packages and not [path for path in packages if path.read_bytes()]


def test_transactions_end_in_one_place():
    assert not offences(transaction_ends, allowed=COMMITTERS)


def test_the_environment_is_read_in_one_place():
    assert not offences(environment_reads, allowed=ENVIRONMENT_READERS)


def test_every_module_says_what_it_is_for():
    assert not offences(without_docstring)


def test_every_function_can_be_read_at_a_glance():
    assert not offences(long_functions, allowed=GENERATED)


def test_the_top_level_holds_nothing_unexpected():
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")

    assert listed.stdout and not strangers(listed.stdout)


def test_a_stranger_on_the_top_level_is_noticed():
    assert strangers("app/main.py\n.gitignore\nutils/x.py\nsetup.py\n") == {"utils", "setup.py"}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (transaction_ends, "async def f(tx):\n    await tx.commit()"),
        (transaction_ends, "def f(tx, later):\n    later(tx.rollback)"),
        (environment_reads, "import os\nx = os.environ['HOME']"),
        (environment_reads, "import os as system\nx = system.getenv('HOME')"),
        (environment_reads, "from os import environ as e"),
        (without_docstring, "import os"),
        (long_functions, "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION),
        (long_functions, "class C:\n  async def f():\n" + "    x = 1\n" * LONGEST_FUNCTION),
    ],
)
def test_a_breach_is_noticed(rule: Rule, code: str):
    assert len(rule(ast.parse(code))) == 1


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (transaction_ends, "commit = rollback = 1\n# tx.commit()\nx = 'tx.commit()'"),
        (environment_reads, "import os, psutil\nx = psutil.Process().environ(), os.getpid()"),
        (without_docstring, ""),
        (long_functions, "def f():\n" + "    x = 1\n" * (LONGEST_FUNCTION - 1)),
    ],
)
def test_what_only_looks_like_a_breach_is_let_be(rule: Rule, code: str):
    assert not rule(ast.parse(code))
