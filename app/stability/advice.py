"""Which knob of the job's body to turn, for each kind of finding."""

from app.jobs.spec import TrainSpec
from app.stability.events import Finding


def advice(finding: Finding, spec: TrainSpec) -> str:
    """Say what to change in the next job; the values of this one stand in brackets."""
    match finding.kind:
        case "spike":
            return _spike(spec)
        case "plateau":
            return _plateau(finding, spec)
        case "divergence":
            return _divergence(spec)
        case "second_descent":
            return _second_descent(spec)
        case "overfitting":
            return _overfitting(spec)
        case "clamped_perturbation":
            return _clamped(spec)


def _spike(spec: TrainSpec) -> str:
    training = spec.training
    return (
        f"One that comes back does little harm. Against many, lower training.max_grad_norm"
        f" ({training.max_grad_norm:g}) or training.learning_rate ({training.learning_rate:g}), or"
        f" raise hyperparameters.batch_size ({training.batch_size}); the report of the training"
        " file names rows that are unlike the others."
    )


def _plateau(finding: Finding, spec: TrainSpec) -> str:
    training = spec.training
    raise_ = f"raise training.learning_rate ({training.learning_rate:g})" + (
        f" or peft.r ({spec.peft.r})" if spec.peft.method != "full" else ""
    )
    if finding.severity == "warn":
        return f"The run learned next to nothing: {raise_}, and look at the rows of the file."
    return (
        f"If the loss is low enough, fewer steps do as well: lower hyperparameters.n_epochs"
        f" ({training.n_epochs}) or training.max_steps, or set training.early_stopping. If it is"
        f" not, {raise_}."
    )


def _divergence(spec: TrainSpec) -> str:
    training, rho = spec.training, spec.perturbation.rho
    perturbation = f", lower perturbation.rho ({rho:g})" if rho else ""
    return (
        f"Lower training.learning_rate ({training.learning_rate:g}; a third of it is a good next"
        f" try){perturbation}, or raise training.warmup_ratio ({training.warmup_ratio:g})."
    )


def _second_descent(spec: TrainSpec) -> str:
    training = spec.training
    lower = (
        f"It comes with learning rates above the best one: lower training.learning_rate"
        f" ({training.learning_rate:g}) first"
    )
    if spec.perturbation.type == "mgpo":
        return f"{lower}; perturbation.rho ({spec.perturbation.rho:g}) is the next to vary."
    return (
        f'{lower}; then compare with perturbation.type "mgpo" ({spec.perturbation.type} here):'
        " POST /v1/comparisons tells whether it helps on your data."
    )


def _overfitting(spec: TrainSpec) -> str:
    training = spec.training
    others = f"lower hyperparameters.n_epochs ({training.n_epochs})"
    if spec.peft.method != "full":
        others += f" or peft.r ({spec.peft.r}), or raise peft.dropout ({spec.peft.dropout:g})"
    if training.early_stopping is not None:
        return f"The adapter is that of the best evaluation already. To spend less, {others}."
    return (
        'Set training.early_stopping to {"patience": 3}: the adapter is then the best evaluation\'s'
        f" and the run ends there. Or {others}; more rows help most."
    )


def _clamped(spec: TrainSpec) -> str:
    perturbation = spec.perturbation
    if perturbation.apn == "paper":
        return (
            f"The bound sets the look-ahead, not the gradients: raise perturbation.apn_cap"
            f' ({perturbation.apn_cap:g}), or set perturbation.apn to "relative".'
        )
    return (
        "Gradients differ between layers by more than the scale follows, so it is no longer"
        ' adaptive there: set perturbation.apn to "off" for one length in every module, or train'
        " fewer kinds of layers with peft.target_modules."
    )
