"""Where training jobs log: W&B, MLflow, TensorBoard and trackio, through their own clients.

A run that the job has open already is the one that is written to; where there is none, one is
begun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ceval_suite.backends.base import Say
from ceval_suite.errors import ConfigError, unknown

PROJECT = "ceval_suite"
"""The project of runs that are begun here, where none is named."""

STEP = "ceval/step"
"""What W&B draws our values against: its own counter of calls is the training job's."""

Values = Mapping[str, float]
Log = Callable[[Values, int], None]


@dataclass(frozen=True)
class Logger:
    """One place to log to: `log(values, step)`, and `close()` when all is said."""

    name: str
    log: Log
    close: Callable[[], None] = lambda: None


def open_logger(name: str, folder: str | Path | None = None, project: str = PROJECT) -> Logger:
    """A logger by its name: wandb, mlflow, tensorboard or trackio.

    `folder` is where TensorBoard writes its events; `project` names a run that is begun here.

    Raises:
        ConfigError: an unknown one, or its client is not installed.
    """
    if name not in CLIENTS:
        raise ConfigError(unknown("logger", name, CLIENTS))
    packages, make = CLIENTS[name]
    for package in packages:
        try:
            client: Any = import_module(package)
        except ImportError:
            continue
        log, close = make(client, str(folder or "runs"), project)
        return Logger(name, log, close)
    wanted = packages[-1].split(".")[0]
    raise ConfigError(f"logging to {name} needs its client; run pip install {wanted}.")


def of_trainer(
    args: Any, say: Say, failed: Callable[[str, Exception], None] | None = None
) -> list[Logger]:
    """The loggers that a Trainer's arguments name in report_to, as far as they are known here.

    One that cannot be opened is left out where `failed` is there to be told of it.

    Raises:
        ConfigError: one of them is not installed.
    """
    out: list[Logger] = []
    folder = getattr(args, "logging_dir", None) or Path(args.output_dir) / "runs"
    project = str(getattr(args, "project", None) or PROJECT)
    for name in args.report_to or ():
        if name not in CLIENTS:
            say(f"report_to {name}: attach the callback to the Trainer to log there: .attach(…)")
            continue
        try:
            out.append(open_logger(name, folder, project))
        except Exception as error:  # a client raises anything, of the network above all
            if failed is None:
                raise
            failed(name, error)
    return out


Made = tuple[Log, Callable[[], None]]


def _wandb(client: Any, _folder: str, project: str) -> Made:
    begun = client.run is None
    run = client.run or client.init(project=project)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP) if begun else run.define_metric(
        "ceval/*", step_metric=STEP
    )
    return (
        lambda values, step: run.log({**values, STEP: step}),
        run.finish if begun else lambda: None,
    )


def _mlflow(client: Any, _folder: str, project: str) -> Made:
    begun = client.active_run() is None
    if begun:
        client.set_experiment(project)
        client.start_run()
    return (
        lambda values, step: client.log_metrics(dict(values), step=step),
        client.end_run if begun else lambda: None,
    )


def _tensorboard(client: Any, folder: str, _project: str) -> Made:
    # a job that is killed keeps what was logged before
    writer = client.SummaryWriter(folder, flush_secs=5)

    def log(values: Values, step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def _trackio(client: Any, _folder: str, project: str) -> Made:
    begun = client.context_vars.current_run.get() is None
    if begun:
        client.init(project=project, embed=False)
    return (
        lambda values, step: client.log(dict(values), step=step),
        client.finish if begun else lambda: None,
    )


CLIENTS: dict[str, tuple[tuple[str, ...], Callable[[Any, str, str], Made]]] = {
    "wandb": (("wandb",), _wandb),
    "mlflow": (("mlflow",), _mlflow),
    "tensorboard": (("torch.utils.tensorboard", "tensorboardX"), _tensorboard),
    "trackio": (("trackio",), _trackio),
}
"""Logger → the packages that serve as its client, the first that is there, and how it is used."""
