"""Scores reach a training job's loggers through the loggers' own clients."""

from __future__ import annotations

import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ceval_suite import ConfigError, loggers

VALUES = {"ceval/mmlu/acc/micro": 0.25, "ceval/mmlu/acc/micro_low": 0.2}


def events(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars of TensorBoard's event files: (name, step) → value."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    out: dict[tuple[str, int], float] = {}
    for file in folder.glob("events.*"):
        content = file.read_bytes()
        at = 0
        while at < len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = proto.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                out[value.tag, event.step] = round(value.simple_value, 6)
    return out


def test_tensorboard_is_given_every_value_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    logger = loggers.open_logger("tensorboard", tmp_path)
    logger.log(VALUES, 100)
    logger.log({"ceval/mmlu/acc/micro": 0.5}, 200)
    logger.close()
    assert events(tmp_path) == {
        ("ceval/mmlu/acc/micro", 100): 0.25,
        ("ceval/mmlu/acc/micro_low", 100): 0.2,
        ("ceval/mmlu/acc/micro", 200): 0.5,
    }


def test_a_trainer_reports_to_what_its_arguments_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    said: list[str] = []
    args: Any = SimpleNamespace(report_to=["tensorboard", "comet_ml"], output_dir=str(tmp_path))
    (logger,) = loggers.of_trainer(args, said.append)
    logger.log(VALUES, 7)
    logger.close()
    assert len(events(tmp_path / "runs")) == 2
    assert "comet_ml" in said[0]
    assert "attach" in said[0]


def test_mlflow_is_given_every_value_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # newer releases want a database; files need nothing else installed
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow: Any = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    with mlflow.start_run() as run:
        logger = loggers.open_logger("mlflow")
        logger.log(VALUES, 100)
        logger.close()  # the job's own run is left open
        assert mlflow.active_run() is not None
    (point,) = mlflow.MlflowClient().get_metric_history(run.info.run_id, "ceval/mmlu/acc/micro")
    assert (point.step, point.value) == (100, 0.25)


def test_wandb_is_given_every_value_beside_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", dir=str(tmp_path))
    logger = loggers.open_logger("wandb")
    logger.log(VALUES, 100)
    assert dict(run.summary)["ceval/mmlu/acc/micro"] == 0.25
    assert dict(run.summary)["ceval/step"] == 100
    logger.close()
    assert wandb.run is run
    run.finish()


def test_trackio_is_given_every_value_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio: Any = pytest.importorskip("trackio")
    logger = loggers.open_logger("trackio", project="test")
    logger.log(VALUES, 100)
    logger.log({"ceval/mmlu/acc/micro": 0.5}, 200)
    logger.close()
    assert trackio.context_vars.current_run.get() is None
    (file,) = tmp_path.rglob("test*.db")
    with closing(sqlite3.connect(file)) as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    found = [
        (step, {k: v for k, v in json.loads(text).items() if k in VALUES}) for step, text in rows
    ]
    assert found == [(100, VALUES), (200, {"ceval/mmlu/acc/micro": 0.5})]


def test_what_is_unknown_or_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tensorboard"):
        loggers.open_logger("tensorbord")
    monkeypatch.setitem(
        loggers.CLIENTS, "mlflow", (("no_such_package",), loggers.CLIENTS["mlflow"][1])
    )
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        loggers.open_logger("mlflow")
