"""A callback for transformers' Trainer: benchmark scores while a model trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from ceval_suite import curves, loggers, rules
from ceval_suite.backends.base import Say
from ceval_suite.backends.shards import Peers
from ceval_suite.errors import ConfigError, ModelError, UserError
from ceval_suite.report import curve as report
from ceval_suite.secrecy import clean
from ceval_suite.training import PREFIX, Scorer, Scores, silent

When = Literal["step", "evaluate", "save", "epoch"]

log = logging.getLogger(__name__)


@dataclass
class _Evaluation:
    """What was scored in an evaluation of the Trainer's, and the metrics that it came with.

    One of several data sets is one event each, all with names of their own.
    """

    step: int
    scores: Scores | None
    came: set[frozenset[str]] = field(default_factory=set[frozenset[str]])


class EvaluationCallback(TrainerCallback):
    """Scores the model that a Trainer trains, as it stands, and logs what comes of it.

    It computes in the dtype of the weights, so that the numbers equal those of a `run` on the
    checkpoint saved at that step, and leaves everything as it was: the losses are those of a
    training without it, bit for bit.

    >>> import ceval_suite
    >>> callback = ceval_suite.EvaluationCallback("sample-mmlu", every=500, limit=20)
    >>> callback.scorer.tasks
    ['sample-mmlu']
    """

    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        every: int | None = None,
        on: When | None = None,
        name: str | None = None,
        out: str | Path | None = None,
        stop_when: str | Sequence[str] = (),
        alert_when: str | Sequence[str] = (),
        on_error: Literal["warn", "raise"] = "warn",
        prefix: str = PREFIX,
        max_length: int | None = None,
        memory: str | None = None,
        say: Say = log.warning,
        **chosen: Any,
    ) -> None:
        """Score `tasks` `every` N steps and on the last one, or `on` other events of the Trainer.

        Without either it scores whenever the Trainer evaluates; the numbers are then also among
        the metrics of that evaluation, so that metric_for_best_model may name one
        (`ceval/mmlu/acc/micro`), once for all of its data sets. `out` keeps run folders of a model
        `<name>-step-<step>`; `name` is by default that of the Trainer's output folder. A rule of
        `stop_when` that holds ends the training, one of `alert_when` is said (see
        `ceval_suite.rules`). With on_error="raise" an evaluation or a logger that fails ends the
        training. `chosen`: limit, subjects, shots, protocol, split, data, chat, as for `evaluate`.

        Raises:
            ConfigError: `every` and another event, or a rule that cannot be read.
        """
        if every is not None and on not in (None, "step"):
            raise ConfigError(f"every={every} counts steps; drop it, or on='{on}'.")
        if on == "step" and every is None:
            raise ConfigError("on='step' needs every=N: how many steps between two scorings.")
        self.every = every
        self.on: When = on or ("evaluate" if every is None else "step")
        self.stop_when = rules.read_all(stop_when)
        self.alert_when = rules.read_all(alert_when)
        for rule in [*self.stop_when, *self.alert_when]:
            if rule.confidence and out is None:
                raise ConfigError(f"'{rule}' compares item by item; give out= to keep the records.")
        self.on_error = on_error
        self.prefix = prefix
        self.say = say
        options = {"max_length": max_length, "memory": memory}
        self.scorer = Scorer(
            [tasks] if isinstance(tasks, str) else list(tasks),
            name or "",
            None if out is None else Path(out),
            {key: value for key, value in chosen.items() if value is not None},
            {key: value for key, value in options.items() if value is not None},
        )
        self.runs: list[curves.Run] = []
        self._trainer: Any = None
        self._loggers: list[loggers.Logger] | None = None
        self._evaluation: _Evaluation | None = None

    def attach(self, trainer: Any) -> EvaluationCallback:
        """Add this to a Trainer and log through its own `log`, whatever it reports to."""
        trainer.add_callback(self)
        self._trainer = trainer
        return self

    # the Trainer's events

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read tasks and data before the first step: what is wrong with them is said now."""
        self._settle(args, state)
        self._evaluation = None
        if state.is_world_process_zero:
            self.scorer.prepare()
            rules.check([*self.stop_when, *self.alert_when], self.scorer.tasks)
            if self.scorer.out is not None and not self.runs:
                found = curves.find([self.scorer.out], self.scorer.name)
                self.runs = [one for one in found if one[0]["step"] <= state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Score every N steps, and after the last."""
        if self.on == "step" and self.every is not None:
            last = state.global_step >= state.max_steps > 0
            if last or state.global_step % self.every == 0:
                self._score(args, state, control, given)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Score after each epoch."""
        if self.on == "epoch":
            self._score(args, state, control, given)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Score what was just saved."""
        if self.on == "save":
            self._score(args, state, control, given)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Score beside the Trainer's own evaluation, and add to its metrics."""
        if self.on != "evaluate":
            return
        metrics = given.get("metrics")
        came = frozenset(metrics or ())
        known = self._evaluation
        if known is None or known.step != state.global_step or came in known.came:
            scores = self._score(args, state, control, given)
            known = self._evaluation = _Evaluation(state.global_step, scores)
        known.came.add(came)
        scores = known.scores
        if scores is not None and isinstance(metrics, dict):
            metrics.update({f"eval_{k}": v for k, v in scores.values(self.prefix).items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Close what was opened for logging."""
        for logger in self._loggers or []:
            self._guarded(logger.name, logger.close)
        self._loggers = None

    # what they have in common

    def _settle(self, args: Any, state: Any) -> None:
        """The name, and who speaks; an evaluation may come without a training before it."""
        self.scorer.name = self.scorer.name or Path(args.output_dir).resolve().name or "model"
        if not state.is_world_process_zero:
            self.say = silent

    def _score(
        self, args: Any, state: Any, control: Any, given: Mapping[str, Any]
    ) -> Scores | None:
        self._settle(args, state)
        tokenizer = given.get("processing_class") or given.get("tokenizer")
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        try:
            if tokenizer is None:
                raise ModelError("the Trainer has no tokenizer; give it processing_class=.")
            scores = self.scorer.score(given["model"], tokenizer, state.global_step)
        except Exception as error:
            if self.on_error == "raise" or not isinstance(error, UserError | OSError):
                raise
            self.say(f"step {state.global_step}: not scored: {error}")
            return None
        folders = scores.folders or (None,) * len(scores.summaries)
        self.runs += zip(scores.summaries, folders, strict=True)
        self._log(scores, args, state)
        if self.stop_when or self.alert_when:
            with Peers.of_this_job() as peers:
                if peers.agreed(peers.first and self._judge(scores)):
                    control.should_training_stop = True
        return scores

    def _judge(self, scores: Scores) -> bool:
        """Whether a rule ends the training; what holds is said."""
        lines = curves.of(self.runs)
        stop = False
        for rule in [*self.alert_when, *self.stop_when]:
            try:
                found = rules.holds(rule, lines)
            except UserError as error:
                self.say(f"step {scores.step}: {error}")
                continue
            if found is not None:
                ends = rule in self.stop_when
                self.say(report.holds(found) + ("; training stops" if ends else ""))
                stop = stop or ends
        return stop

    def _log(self, scores: Scores, args: Any, state: Any) -> None:
        values = scores.values(self.prefix)
        if self._trainer is not None:
            self._guarded("the Trainer", lambda: self._trainer.log(dict(values)))
            return
        state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})
        if not state.is_world_process_zero:
            return
        if self._loggers is None:
            self._loggers = loggers.of_trainer(args, self.say, self._not_logged)
        for logger in self._loggers:
            self._guarded(logger.name, partial(logger.log, values, state.global_step))

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        """Log; what fails in it ends no training."""
        try:
            act()
        except Exception as error:  # a client raises anything, of the network above all
            self._not_logged(name, error)

    def _not_logged(self, name: str, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        text = " ".join(clean(str(error)).split())[:200]
        self.say(f"not logged to {name}: {text or type(error).__name__}")
