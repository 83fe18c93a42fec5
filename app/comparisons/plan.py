"""From a comparison to the jobs it is made of. Pure."""

from app.comparisons.asked import CreateComparison, MethodIn
from app.errors import ApiError, InvalidRequest
from app.jobs.schemas import CreateJob

MOST_JOBS = 100
OF_METHOD = ("peft", "perturbation")


def check(body: CreateComparison) -> None:
    """Refuse what would not compare like with like.

    Raises:
        InvalidRequest: the message says why; the parameter is named.
    """
    names = [method.name for method in body.methods]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(
                f"Two methods are called {name!r}; give each a name of its own.",
                param=f"methods.{index}.name",
            )
    if len(set(body.seeds)) < len(body.seeds):
        raise InvalidRequest("A seed stands twice: the same run tells nothing new.", param="seeds")
    if len(names) * len(body.seeds) > MOST_JOBS:
        raise InvalidRequest(
            f"{len(names)} methods × {len(body.seeds)} seeds are more than {MOST_JOBS} jobs;"
            " compare fewer at once.",
            param="seeds",
        )
    if body.method is not None and body.method.type == "reinforcement":
        raise InvalidRequest(
            "Methods are compared by valid_loss, and reinforcement has none: submit its jobs one by"
            " one.",
            param="method.type",
        )
    if body.training.max_steps is not None:
        raise InvalidRequest(
            "How long the runs are is said once for all: use budget.max_steps.",
            param="training.max_steps",
        )
    if body.training.early_stopping is not None:
        raise InvalidRequest(
            "Runs that end where they like are not compared at equal steps: leave it out.",
            param="training.early_stopping",
        )


def job_of(
    body: CreateComparison,
    method: MethodIn,
    *,
    seed: int,
    max_steps: int | None,
    eval_steps: int | None,
    metadata: dict[str, str],
) -> CreateJob:
    """Return the request for one run. Its seed decides the order of the rows, whatever the method.

    Args:
        max_steps: of the run; None is that of its epochs.
        eval_steps: between evaluations, the same in all runs; None is what is resolved.
    """
    own = method.training.model_dump(exclude_none=True)
    lengths = {"max_steps": max_steps, "eval_steps": eval_steps}
    return CreateJob(
        model=body.model,
        training_file=body.training_file,
        validation_file=body.validation_file,
        method=body.method,
        hyperparameters=body.hyperparameters,
        seed=seed,
        metadata=metadata,
        peft=method.peft,
        perturbation=method.perturbation,
        training=body.training.model_copy(update=own | lengths),
        evaluation=body.evaluation,
        resources=body.resources,
        priority=body.priority,
    )


def blame(error: ApiError, body: CreateComparison, index: int) -> None:
    """Have an error about one run name the method that it comes from."""
    if error.param is None:
        return
    part, _, name = error.param.partition(".")
    method = body.methods[index]
    own = part == "training" and getattr(method.training, name, None) is not None
    if part in OF_METHOD or own:
        error.param = f"methods.{index}.{error.param}"
        error.message = f"{method.name}: {error.message}"
