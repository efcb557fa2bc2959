"""TPGM in the Trainer of Hugging Face transformers."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from tpgm import check
from tpgm.files import packed, unpacked
from tpgm.integrations.driver import BATCHES, Batches, Driver, Log, copied
from tpgm.methods.base import refuse_schedule_free

try:
    from accelerate.utils import send_to_device
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError("this needs transformers and accelerate: pip install 'tpgm[transformers]'") from error

VERSION = 1  # of what is kept in trainer_state.json


class TPGMCallback(TrainerCallback, ExportableState):
    """Constrains the model that a ``transformers.Trainer`` trains::

        trainer = Trainer(model=model, args=args, train_dataset=train, data_collator=collator)
        trainer.add_callback(TPGMCallback(trainer, validation, exclude=["classifier.*"]))
        trainer.train()

    trainer: the one to which the callback is added; the weights its model has at this moment are the anchor (with
    ``anchor=`` others, see `tpgm.TPGM`), so make it before ``train``, with pre-trained weights also when that will
    resume from a checkpoint. validation: held-out data of the training distribution, with a length and indexed by
    position, whose items the Trainer's collator accepts; the loss is then the Trainer's own (``compute_loss``), under
    its autocast. Or a function without arguments that returns the loss of the model on a validation batch of its own
    choice. every: optimizer steps (not micro-steps of gradient accumulation) between updates of the radii; the weights
    are projected after each. updates: how many at a time. batch_size: of validation batches, by default the Trainer's
    for evaluation. log: mean ratios for "blocks" or "tensors" or "nothing", whenever the Trainer logs its loss, to
    whatever it reports to, as ``tpgm/ratio/…``. settings: as for `tpgm.TPGM`. ``constraint`` is that object, once
    training has begun. With ``buffers="reestimate"`` running statistics are estimated anew when training ends, by
    forward passes on the Trainer's first 100 training batches; checkpoints written before that have those of training.

    Radii are in the Trainer's checkpoints (``trainer_state.json``) and come back with ``resume_from_checkpoint``.
    Raises ValueError for settings that cannot be and for a schedule-free optimizer, TypeError for validation data
    without length or index;
    on several processes `tpgm.TPGM` averages over those of the DistributedDataParallel that the Trainer makes.
    """

    def __init__(
        self,
        trainer: Trainer,
        validation: Any | Callable[[], Tensor],
        *,
        every: int = 1,
        updates: int = 1,
        batch_size: int | None = None,
        log: Log = "blocks",
        **settings: Any,
    ) -> None:
        self.driver = Driver(every, updates, log, settings)
        if not hasattr(trainer, "args") or not hasattr(trainer, "model"):
            raise TypeError(f"trainer must be the Trainer to which the callback is added, got {check.shown(trainer)}")
        if batch_size is not None:
            check.number("batch_size", batch_size, 1, whole=True)
        if trainer.args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "the radii resume by themselves; with restore_callback_states_from_checkpoint=True the Trainer would "
                "replace this callback by one without validation data"
            )
        if trainer.model is None:
            raise ValueError("a Trainer with model_init has no model yet whose weights could be the anchor")
        self.trainer = trainer
        self._anchor = settings["anchor"] if "anchor" in settings else copied(trainer.model)
        own = callable(validation) and not hasattr(validation, "__getitem__")
        self._own_loss = validation if own else None
        if not own:
            Batches(validation, list, 1, 0)  # complain now rather than when training begins
        self._data: Any = validation
        self._batch_size = batch_size

    @property
    def constraint(self) -> Any:
        """The `tpgm.TPGM` at work; None before training."""
        return self.driver.constraint

    def _loss(self) -> Callable[[int], Tensor]:
        trainer = self.trainer
        if self._own_loss is not None:
            own = self._own_loss
            return lambda number: own()
        # the Trainer's own loader knows which columns the model takes; only its pieces are used
        loader = trainer.get_test_dataloader(self._data)
        batches = Batches(
            loader.dataset, loader.collate_fn, self._batch_size or trainer.args.eval_batch_size, trainer.args.seed
        )

        def loss(number: int) -> Tensor:
            batch = send_to_device(batches(number, trainer.args.process_index), trainer.args.device)
            with trainer.compute_loss_context_manager():
                found: Any = trainer.compute_loss(trainer.model_wrapped, batch)
            return cast("Tensor", found)

        return loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            states: Any = state.stateful_callbacks  # a mapping of names, whatever its annotation says
            kept = states.get(type(self).__name__)
            text = kept["attributes"].get("saved") if isinstance(kept, dict) else None
            if text is None:
                raise ValueError(
                    "the checkpoint holds no radii of TPGM (it was made without the callback, or with two)"
                )
            self.driver.saved = _decoded(text)
        refuse_schedule_free(self.trainer.optimizer)
        self.driver.start(self.trainer.model_wrapped, self._anchor, self._loss())
        if "anchor" not in self.driver.settings:
            self._anchor = self.driver.anchor(self._anchor)  # one copy is enough

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.driver.after_step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer

        def passes() -> None:
            for batch in itertools.islice(trainer.get_train_dataloader(), BATCHES):
                with trainer.compute_loss_context_manager():
                    trainer.compute_loss(trainer.model_wrapped, send_to_device(batch, args.device))

        self.driver.finish(passes)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # "loss" marks the log of training steps; this one's own has none, which ends the recursion
        if logs is not None and "loss" in logs and (found := self.driver.metrics()):
            self.trainer.log(found)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into ``trainer_state.json``."""
        saved = None if self.driver.constraint is None else _encoded(self.driver.state())
        return {"args": {}, "attributes": {"saved": saved}}


def _encoded(state: dict[str, Any]) -> str:
    """As text, bit for bit: the Trainer keeps states of callbacks as JSON."""
    return base64.b64encode(packed(VERSION, state)).decode()


def _decoded(text: str) -> dict[str, Any]:
    """Raises ValueError if the text is damaged."""
    what, cure = "the state of TPGM in trainer_state.json", "resume from another checkpoint"
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{what} is damaged ({error}); {cure}") from error
    if base64.b64encode(content).decode() != text:  # bits that decoding does not look at
        raise ValueError(f"{what} is damaged; {cure}")
    return unpacked(content, VERSION, what, cure)
