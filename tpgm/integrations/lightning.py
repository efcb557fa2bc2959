"""TPGM as a callback of Lightning's Trainer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from tpgm import check
from tpgm.integrations.driver import BATCHES, Batches, Driver, Log, copied
from tpgm.methods.base import refuse_schedule_free

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import CombinedLoader
except ImportError as error:
    raise ImportError("this needs lightning: pip install 'tpgm[lightning]'") from error


class TPGMCallback(Callback):
    """Constrains the model that a ``lightning.pytorch.Trainer`` trains::

        def loss(module, batch):
            x, y = batch
            return cross_entropy(module(x), y)

        trainer = Trainer(callbacks=[TPGMCallback(validation, loss, exclude=["net.head.*"])])

    validation: held-out data of the training distribution, with a length and indexed by position. loss: of the module
    on one batch of them, a scalar tensor with a gradient (it must not log: Lightning would count it as training). The
    weights that the module has when ``fit`` begins, before a checkpoint is loaded, are the anchor (with ``anchor=``
    others, see `tpgm.TPGM`). every: optimizer steps (not micro-steps of gradient accumulation) between updates of the
    radii; the weights are projected after each. updates: how many at a time. batch_size, collate: of validation
    batches. log: mean ratios for "blocks" or "tensors" or "nothing", every ``log_every_n_steps`` optimizer steps to
    all loggers of the Trainer, as ``tpgm/ratio/…``. seed: of the order of the validation data. settings: as for
    `tpgm.TPGM`. ``constraint`` is that object, once training has begun. With ``buffers="reestimate"`` running
    statistics are estimated anew when training ends, by `loss` on the Trainer's first 100 training batches; checkpoints
    written before that have those of training.

    Radii are in Lightning's checkpoints and come back with ``fit(ckpt_path=…)``. Under DDP the gradients of the radii
    are averaged over the processes. Sharded strategies (FSDP, DeepSpeed) are not supported.
    Raises ValueError for settings that cannot be and for a schedule-free optimizer, TypeError for validation data
    without length or index.
    """

    def __init__(
        self,
        validation: Any,
        loss: Callable[[Any, Any], Tensor],
        *,
        every: int = 1,
        updates: int = 1,
        batch_size: int = 64,
        collate: Callable[[list[Any]], Any] = default_collate,
        log: Log = "blocks",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.driver = Driver(every, updates, log, settings)
        self._batches = Batches(validation, collate, batch_size, seed)
        self._loss: Callable[[Any, Any], Tensor] = check.instance(
            "loss", loss, Callable, "a function of module and batch, giving the loss"
        )
        self._anchor: Any = settings.get("anchor")
        self._seen = 0

    @property
    def constraint(self) -> Any:
        """The `tpgm.TPGM` at work; None before training."""
        return self.driver.constraint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning loads a checkpoint's weights only after this
        if stage == "fit" and self._anchor is None:
            self._anchor = copied(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            refuse_schedule_free(optimizer)
        wrapper = trainer.strategy.model
        model = wrapper if isinstance(wrapper, DistributedDataParallel) else pl_module

        def loss(number: int) -> Tensor:
            batch = pl_module.transfer_batch_to_device(self._batches(number, trainer.global_rank), pl_module.device, 0)
            with trainer.precision_plugin.forward_context():
                return self._loss(pl_module, batch)

        if trainer.global_step and self.driver.saved is None:
            if self.constraint is not None and self._seen == trainer.global_step:
                return  # fit() again, without a checkpoint: go on
            raise ValueError("the checkpoint holds no radii of TPGM: it was made without this callback")
        assert self._anchor is not None
        self.driver.start(model, self._anchor, loss)
        if "anchor" not in self.driver.settings:
            self._anchor = self.driver.anchor(self._anchor)  # one copy is enough
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:
            return  # gradients are still being accumulated
        self._seen = trainer.global_step
        self.driver.after_step()
        if trainer.loggers and self.driver.steps % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                logger.log_metrics(self.driver.metrics(), step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def passes() -> None:
            for batch, *_ in itertools.islice(CombinedLoader(trainer.train_dataloader), BATCHES):
                self._loss(pl_module, pl_module.transfer_batch_to_device(batch, pl_module.device, 0))

        self.driver.finish(passes)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.driver.constraint is None else self.driver.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.driver.saved = state_dict or None
