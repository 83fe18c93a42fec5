"""Breaks the mathematics on purpose, one way at a time, and shows that the tests notice.

`python -m tests.mutants [NAME …]` breaks a copy of the tree and runs the narrow tests on it.
"""

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.settings import inherited_environment

ROOT = Path(__file__).parents[1]
MGPO, NOISE = "worker/optim/mgpo.py", "worker/optim/noise.py"
TRAINERS = "worker/trainer/trainers.py"
OPTIM = ("tests/worker/optim/test_mgpo.py", "--noconftest")
OPTIM_NOISE = ("tests/worker/optim/test_noise.py", "--noconftest")
REAL_RUN = ("tests/worker/trainer/test_perturbations.py", "-k", "clean and mgpo")


@dataclass(frozen=True)
class Mutant:
    """One mistake: `old` becomes `new` in `path`, and `tests` must fail."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...] = OPTIM


MUTANTS = [
    Mutant("sign flipped", MGPO, "return -rho * s_L", "return rho * s_L"),
    Mutant("restore skipped", MGPO, "self._parameters[index].data = weight", "pass"),
    Mutant(
        "restore by subtraction",
        MGPO,
        "self._parameters[index].data = weight",
        "f = self._factors[self._moved.index(index)]\n"
        "            self._parameters[index].sub_(self._v(index) * f)",
    ),
    Mutant("norms of the modules swapped", MGPO, 'if norm == "module"', 'if norm == "global"'),
    Mutant(
        "β and 1−β swapped",
        MGPO,
        "beta * g_bar_L + (1 - beta) * n_L",
        "(1 - beta) * g_bar_L + beta * n_L",
    ),
    Mutant("cap ignored", MGPO, "(1 / g_bar_L).clamp(max=cap)", "(1 / g_bar_L)"),
    Mutant(
        "ε of the momentum a step ago",
        MGPO,
        "+= 1\n        self._factors = None\n",
        "+= 1\n        if self._step % 2:\n            self._factors = None\n",
    ),
    Mutant(
        "ḡ of a module takes in the next one's gradients",
        MGPO,
        "_places(tuple(indices)).slot_P] = norms_P.square()",
        "_places(tuple(indices)).slot_P] = norms_P.square().roll(1)",
    ),
    Mutant("start_step ignored", MGPO, " or self._step < self._start_step", ""),
    Mutant(
        "own v not saved",
        MGPO,
        '            state[f"v.{index}"] = v.clone()\n',
        '            state[f"v.{index}"] = torch.zeros_like(v)\n',
    ),
    Mutant("overflow taken into ḡ", MGPO, ".owns_L & finite", ".owns_L"),
    Mutant(
        "ε rounded by itself",
        MGPO,
        "p.to(exact).addcmul(v.to(exact), factor).to(p.dtype)",
        "p + (v.to(exact) * factor).to(p.dtype)",
    ),
    Mutant(
        "backward without the noise",
        NOISE,
        "noisy_chunks(weight, std_O, ctx.seed)",
        "noisy_chunks(weight, 0 * std_O, ctx.seed)",
        OPTIM_NOISE,
    ),
    Mutant(
        "another noise in recomputation",
        NOISE,
        "        y = noisy_linear(x, linear.weight, self._std[index], seed=seed)\n",
        "        self._seed += 1\n"
        "        y = noisy_linear(x, linear.weight, self._std[index], seed=seed)\n",
        OPTIM_NOISE,
    ),
    Mutant("noise in evaluation", NOISE, "if not linear.training:", "if False:", OPTIM_NOISE),
    Mutant(
        "statistics of GGPO not saved",
        NOISE,
        "= square_O.clone()\n",
        "= torch.zeros_like(square_O)\n",
        OPTIM_NOISE,
    ),
    Mutant(
        "perturbed in evaluation",
        TRAINERS,
        "if self.perturbation is not None and model.training:",
        "if self.perturbation is not None:",
        REAL_RUN,
    ),
]

CONTROLS = [  # no mistake at all: what kills one of these proves nothing
    Mutant(f"nothing, {tests[0]}", MGPO, "EPS = 1e-12\n", "EPS = 1e-12\n", tests)
    for tests in (OPTIM, OPTIM_NOISE, REAL_RUN)
]


def killed(mutant: Mutant) -> bool:
    """Return whether the tests fail on a copy of the tree with the mistake in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("app", "worker", "tests", "migrations"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        broken = copy / mutant.path
        text = broken.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: its text is not there once"
        broken.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        environment = inherited_environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": folder}
        done = subprocess.run(
            [*command, *mutant.tests], cwd=copy, env=environment, capture_output=True, text=True
        )
    assert done.returncode in (0, 1), f"{mutant.name}: the tests did not run\n{done.stdout}"
    return done.returncode == 1


def main(names: list[str]) -> int:
    """Say of each mutant whether the tests kill it; return how many do not fare as they should."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    assert chosen, f"no mutant is called that; there are {', '.join(m.name for m in MUTANTS)}"
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(killed, chosen))
        false_alarms = [control.name for control in CONTROLS if killed(control)]
    for mutant, dead in zip(chosen, found, strict=True):
        print("killed  " if dead else "SURVIVES", mutant.name)
    for name in false_alarms:
        print("FALSE ALARM", name)
    return found.count(False) + len(false_alarms)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
