"""Models and moments that torch has words of its own for: what can be is computed, the rest is refused with a cure."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import tpgm
from tests.small import small_data, small_start
from tpgm.buffers import reestimate
from tpgm.integrations.driver import Batches
from tpgm.optim import AdamSPD
from tpgm.training.batches import index_batches, per_epoch


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


# --- weights that are computed from others


def with_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        weight_norm(layer)


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": with_weight_norm,
    "spectral_norm": spectral_norm,
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_model_that_torch_cannot_copy_is_refused_with_the_cure(kind: str) -> None:
    model = two_layers()
    COMPUTED[kind](model[0])
    model(torch.randn(5, 3))
    start = tensors(model)
    with pytest.raises(ValueError, match=r"cannot be copied: 0\.weight is computed.*prune\.remove.*parametrizations"):
        tpgm.interpolate(model, start, 0.5)
    begun = small_start()
    COMPUTED[kind](begun.model.block[0])
    begun.model(torch.randn(2, 3, 12, 12))
    with pytest.raises(ValueError, match=r"cannot be copied: block\.0\.weight is computed"):
        tpgm.finetune(begun, small_data(), "vanilla", epochs=1, progress=False)


def test_an_activation_that_is_kept_is_named() -> None:
    model = two_layers()
    model[1].last = model(torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"1\.last is computed.*an activation that the model keeps must be detached"):
        tpgm.interpolate(model, tensors(model), 0.5)


def test_an_uncopyable_model_of_another_kind_keeps_its_own_words() -> None:
    class Alone(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("one of a kind")

    model = Alone(3, 2)
    with pytest.raises(RuntimeError, match="one of a kind"):
        tpgm.interpolate(model, tensors(model), 0.5)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_of_a_parametrized_module_what_lies_behind_the_weight_is_interpolated(norm: Callable[..., Any]) -> None:
    model = two_layers().eval()
    norm(model[0])
    start = tensors(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    halfway = tpgm.interpolate(model, start, 0.25)
    for name, p in halfway.named_parameters():
        expected = 0.75 * start[name] + 0.25 * model.get_parameter(name)
        torch.testing.assert_close(p, expected)
    assert torch.isfinite(halfway(torch.randn(5, 3))).all()


# --- no numbers, or numbers for inference only


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 4)


def test_models_and_anchors_without_numbers_are_refused() -> None:
    real, empty = nn.Linear(3, 4), on_meta()
    for model, anchor in ((empty, tensors(empty)), (real, tensors(empty)), (empty, tensors(real))):
        with pytest.raises(ValueError, match="weight: on the device meta, without numbers; load the weights first"):
            tpgm.interpolate(model, anchor, 0.5)
        with pytest.raises(ValueError, match=r"weight.* on the device meta.*load the weights first"):
            tpgm.TPGM(model, anchor=anchor)
    for anchor in (None, "zero"):
        with pytest.raises(ValueError, match="weight is on the device meta and has no numbers: load the weights"):
            tpgm.TPGM(empty, anchor=anchor)
        with pytest.raises(ValueError, match="weight is on the device meta and has no numbers: load the weights"):
            AdamSPD(empty.named_parameters(), lr=0.1, anchor=anchor)


def test_inference_mode_is_no_place_to_make_what_trains() -> None:
    model = two_layers()
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"a TPGM made inside torch.inference_mode.*: make it outside"):
            tpgm.TPGM(model)
        with pytest.raises(RuntimeError, match=r"an optimizer made inside torch.inference_mode.*: make it outside"):
            AdamSPD(model.parameters(), lr=0.1)
        made_there = two_layers()
        start = {name: t + 1 for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"0\.weight was made inside torch.inference_mode.*make the model outside"):
        tpgm.TPGM(made_there)
    with pytest.raises(ValueError, match=r"parameter 0 of the group was made inside torch.inference_mode"):
        AdamSPD(made_there.parameters(), lr=0.1)
    constraint = tpgm.TPGM(model, anchor=start)  # copied: tensors of inference mode will do
    x = torch.randn(5, 3)
    constraint.update(lambda: model(x).square().mean())
    with torch.inference_mode():
        constraint.project_()
        tpgm.interpolate(model, start, 0.5)(x)
    constraint.update(lambda: model(x).square().mean())
    assert all(0 < r <= 1 for r in constraint.ratios().values())


# --- a whole checkpoint in place of an anchor


@pytest.mark.parametrize("entry", ["state_dict", "model", "state_dict_ema", "net"])
def test_a_checkpoint_is_no_anchor(entry: str) -> None:
    model = two_layers()
    whole = {entry: tensors(model), "epoch": 3, "lr": 0.1}
    for door in (
        lambda: tpgm.interpolate(model, whole, 0.5),
        lambda: tpgm.TPGM(model, anchor=whole),
        lambda: AdamSPD(model.named_parameters(), lr=0.1, anchor=whole),
    ):
        with pytest.raises(ValueError, match=rf"whole checkpoint.* '{entry}': give .* checkpoint\['{entry}'\]"):
            door()
    both = {**whole, "state_dict_ema": tensors(model)}
    with pytest.raises(ValueError, match=f"'{entry}'" if entry == "state_dict_ema" else f"'{entry}' and 'state_dict_e"):
        tpgm.TPGM(model, anchor=both)


# --- BatchNorm and a batch of one image


def test_a_last_batch_of_one_is_left_out_where_asked() -> None:
    assert [per_epoch(n, 4, 2) for n in (1, 4, 5, 6, 8, 9)] == [1, 1, 1, 2, 2, 2]
    assert [per_epoch(n, 4) for n in (1, 4, 5, 6, 8, 9)] == [1, 1, 2, 2, 2, 3]
    batches = index_batches(9, 4, 0, least=2)
    epochs = [[next(batches) for _ in range(2)] for _ in range(20)]
    assert {len(batch) for epoch in epochs for batch in epoch} == {4}
    assert {i for epoch in epochs for batch in epoch for i in batch} == set(range(9)), "each time another one"
    later = index_batches(9, 4, 0, 3, least=2)
    assert next(later) == epochs[1][1]
    assert next(index_batches(1, 4, 0, least=2)) == [0], "the only one stays"


class Pooled(nn.Module):
    """BatchNorm after the pooling sees one value of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).mean((2, 3))))


def pooled() -> tpgm.models.Pretrained:
    torch.manual_seed(3)
    model = Pooled()
    anchor = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("head")}
    return replace(small_start(), model=model, anchor=anchor)


def data_of(train: int, val: int) -> tpgm.data.DataSplits:
    data = small_data(train)
    part = type(data.val)(data.val.images[:val], data.val.labels[:val])
    return replace(data, val=part)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("vanilla", {"batchnorm": "train"}),
        ("vanilla", {"batchnorm": "train", "patience": 2}),
        ("tpgm-end", {"buffers": "reestimate", "val_batch_size": 8, "updates": 5}),
        ("tpgm", {"buffers": "reestimate", "val_batch_size": 8}),
        ("wise-ft", {"buffers": "reestimate", "batchnorm": "train"}),
    ],
)
def test_a_last_batch_of_one_image_does_not_stop_a_run(method: str, settings: dict[str, Any]) -> None:
    result = tpgm.finetune(pooled(), data_of(17, 9), method, epochs=2, batch_size=8, progress=False, **settings)
    assert len(result.history) == 2
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_batches_of_one_image_are_named_with_the_cure() -> None:
    words = "BatchNorm in train mode cannot take the statistics of one image alone.*drop_last=True.*eval mode"
    with pytest.raises(ValueError, match=words):
        tpgm.finetune(pooled(), data_of(17, 9), "vanilla", epochs=1, batch_size=1, batchnorm="train", progress=False)
    model = Pooled()
    before = tensors(model)
    with pytest.raises(ValueError, match=words):
        reestimate(model, [torch.randn(2, 3, 8, 8), torch.randn(1, 3, 8, 8)])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    constraint = tpgm.TPGM(model, anchor={n: t + 0.1 for n, t in before.items()}, buffers="reestimate")
    with pytest.raises(ValueError, match=words):
        constraint.update(lambda: model(torch.randn(1, 3, 8, 8)).square().mean())
    with pytest.raises(ValueError, match="of my own"):
        constraint.update(_failing)


def _failing() -> Tensor:
    raise ValueError("of my own")


def test_validation_batches_of_the_callbacks_have_at_least_two_items() -> None:
    batches = Batches(list(range(9)), list, 4, 0)
    assert {len(batches(number)) for number in range(20)} == {4}
    assert Batches([7], list, 4, 0)(0) == [7]


def test_the_best_weights_keep_versions_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(nn.BatchNorm2d):
        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *more: Any) -> None:
            assert metadata.get("version") == 2, "loaded without its version"
            super()._load_from_state_dict(state, prefix, metadata, *more)

    start = small_start()
    model = copy.deepcopy(start.model)
    model.block[1] = Strict(6)
    result = tpgm.finetune(replace(start, model=model), small_data(), "vanilla", epochs=2, patience=1, progress=False)
    assert result.model.state_dict()._metadata["block.1"] == {"version": 2}
