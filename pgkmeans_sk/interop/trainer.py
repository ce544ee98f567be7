"""IterativePQ inside ``transformers.Trainer.train()`` (needs transformers and accelerate)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pgkmeans_sk.nn.iterative_pq import IterativePQ
from pgkmeans_sk.nn.stage import Stage
from pgkmeans_sk.validation import check_integer

__all__ = ["PGKMeansCallback"]


class PGKMeansCallback(TrainerCallback):
    """Compresses the next group of layers whenever a stage's share of the training is over.

    The first group is compressed when training begins, the others before the first step of their
    stage: so evaluations and saved models at the end of an epoch are those of a trained stage. The
    last stage goes on until training ends, however long that is. The optimiser's memory of
    parameters that changed their shape is dropped; learning rates follow the one schedule of the
    whole training.

    Parameters
    ----------
    iterative : IterativePQ
        For the model that the trainer trains.
    epochs_per_stage : int, default=None
        Length of a stage in epochs. Give this or ``steps_per_stage``.
    steps_per_stage : int, default=None
        Length of a stage in steps of the optimiser.

    Attributes
    ----------
    stages : list of Stage
        Those that have begun in this training.

    Raises
    ------
    ValueError, TypeError
        If arguments are none that are accepted. When training begins: if the model is another; if
        training is too short for the stages that are left, or none is left; in several processes;
        with ``load_best_model_at_end`` or ``resume_from_checkpoint``, since a model that the
        trainer saved in one stage does not fit into a model in another. To go on with a training
        that was killed, give ``IterativePQ`` a ``checkpoint``, and train for as long as the stages
        that are left take.

    Notes
    -----
    For one process: DistributedDataParallel, FSDP and DeepSpeed, in which the trainer wraps the
    model before training begins, remember the shapes of parameters, and are refused.

    Examples
    --------
    >>> from pgkmeans_sk import nn
    >>> from pgkmeans_sk.interop.trainer import PGKMeansCallback
    >>> def compress_and_train(model, arguments, dataset):
    ...     iterative = nn.IterativePQ(model, "ipq")
    ...     callback = PGKMeansCallback(iterative, epochs_per_stage=1)
    ...     Trainer(model, arguments, train_dataset=dataset, callbacks=[callback]).train()
    """

    def __init__(
        self,
        iterative: IterativePQ,
        *,
        epochs_per_stage: int | None = None,
        steps_per_stage: int | None = None,
    ) -> None:
        if not isinstance(iterative, IterativePQ):
            raise TypeError(
                f"Got iterative of type {type(iterative).__name__}, but expected an IterativePQ."
            )
        if (epochs_per_stage is None) == (steps_per_stage is None):
            raise ValueError(
                f"Got epochs_per_stage={epochs_per_stage!r} and steps_per_stage="
                f"{steps_per_stage!r}, but expected one of them."
            )
        if epochs_per_stage is not None:
            check_integer("epochs_per_stage", epochs_per_stage, 1)
        if steps_per_stage is not None:
            check_integer("steps_per_stage", steps_per_stage, 1)
        self.iterative = iterative
        self.epochs_per_stage = epochs_per_stage
        self.steps_per_stage = steps_per_stage
        self.stages: list[Stage] = []
        self._iterator: Iterator[Stage] | None = None
        self._n_done = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compress the first group, or the first that is left."""
        self._check(args, state, kwargs.get("model"))
        self._check_length(state)
        self.stages = []
        self._iterator = iter(self.iterative)
        self._next_stage(kwargs.get("optimizer"))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compress the next group, if it is its turn."""
        if self.epochs_per_stage is not None and self._n_done >= self.epochs_per_stage:
            self._next_stage(kwargs.get("optimizer"))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count epochs."""
        if self.epochs_per_stage is not None:
            self._n_done += 1

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compress the next group, if it is its turn."""
        if self.steps_per_stage is not None and self._n_done >= self.steps_per_stage:
            self._next_stage(kwargs.get("optimizer"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count steps."""
        if self.steps_per_stage is not None:
            self._n_done += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish the last stage."""
        if self._iterator is None:
            return
        if self.stages[-1].is_last:
            next(self._iterator, None)  # what comes after the last stage's body
        else:
            stage = self.stages[-1]
            warnings.warn(
                f"Training ended in stage {stage.number} of {stage.n_stages}: groups that come "
                "after it are not compressed.",
                stacklevel=2,
            )
        self._iterator = None

    def _next_stage(self, optimizer: Any) -> None:
        """Begin the next stage; the last one goes on, since there may be more training to come."""
        self._n_done = 0
        if self._iterator is None or (self.stages and self.stages[-1].is_last):
            return
        stage = next(self._iterator, None)
        if stage is not None:
            self.stages.append(stage)
            if optimizer is not None:
                stage.reset_optimizer_state(optimizer)

    def _check(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        if model is not self.iterative.model:
            raise ValueError(
                f"Got a trainer for another {type(model).__name__}, but expected the model that "
                "IterativePQ was given."
            )
        if args.world_size > 1 or args.deepspeed:
            raise ValueError(
                "Got a training in several processes or with DeepSpeed, but expected one process: "
                "the model was wrapped for parameters that will have other shapes."
            )
        if args.load_best_model_at_end:
            raise ValueError(
                "Got load_best_model_at_end=True, but expected False: the best model may be of a "
                "stage with other weights compressed, into which it cannot be loaded."
            )
        if state.global_step > 0:
            raise ValueError(
                f"Got a training that goes on after step {state.global_step}, but expected one "
                "from the beginning: give IterativePQ a checkpoint instead."
            )

    def _check_length(self, state: TrainerState) -> None:
        """Raise if there is nothing to do, or stages would not have their turn."""
        n_left = len(self.iterative.remaining)
        if not n_left:
            raise ValueError(
                "Got an IterativePQ whose stages are all finished, but expected groups that are "
                "left. Its iteration, which is empty, restores the model from a checkpoint."
            )
        if self.steps_per_stage is not None:
            needed, given, unit = n_left * self.steps_per_stage, state.max_steps, "steps"
        else:
            assert self.epochs_per_stage is not None
            needed, given, unit = n_left * self.epochs_per_stage, state.num_train_epochs, "epochs"
        if given < needed:
            raise ValueError(
                f"Got a training of {given} {unit}, but expected at least {needed} for the "
                f"{n_left} stages that are left."
            )
