"""The benchmarks' own parts, by hand-worked numbers; and that contestants compute the same."""

import argparse
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import (
    checkpoints,
    gpu,
    index,
    layer,
    measure,
    peers_2021,
    pointing,
    scaling,
    sections,
    startup,
    train_step,
    workload,
)


def test_turns_alternate_and_the_median_is_of_its_clock():
    calls = []
    turns = measure.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert [len(own) for own in turns.values()] == [2, 2]
    slow = [measure.Turn(wall, cpu, None) for wall, cpu in ((3, 1), (1, 5), (2, 9))]
    assert measure.median(slow) == 2
    assert measure.median(slow, "cpu_s") == 5


def test_a_turn_ends_when_the_workers_of_its_contestant_rest():
    # In a process of its own: this one has children that other tests started.
    worker = """import time
while time.process_time() < 1:
    pass
time.sleep(60)"""
    asked = f"""import subprocess, sys
from benchmarks.input_pipeline import rest, tree_cpu
worker = subprocess.Popen([sys.executable, "-c", {worker!r}])
before = tree_cpu()
rest()
print(tree_cpu() - before)
worker.kill()"""
    used = subprocess.check_output([sys.executable, "-c", asked], text=True, timeout=60)
    assert float(used) >= 0.9


def test_losses_that_differ_end_the_benchmark():
    assert measure.check_equal({"a": 2.0, "b": 2.001}, 1e-3) == pytest.approx(5e-4)
    with pytest.raises(SystemExit, match="differ by"):
        measure.check_equal({"a": 2.0, "b": 2.01}, 1e-3)
    with pytest.raises(SystemExit, match="differ by"):
        measure.check_equal({"a": 2.0, "b": float("nan")}, 1e-3)


def test_table_and_json(capsys, tmp_path):
    measure.show(("name", "s"), [["a", 0.12345], ["b", None], ["c", 1234.5]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["| name | s |", "|---|---|", "| a | 0.123 |", "| b |  |", "| c | 1,234 |"]
    out = tmp_path / "found.json"
    measure.finish(argparse.Namespace(out=str(out)), {"rows": [1]})
    found = json.loads(out.read_text())
    assert found["rows"] == [1]
    assert found["origin"]["jax"] == jax.__version__
    assert found["origin"]["processor"]


def test_stored_lengths_are_those_of_the_plan_of_work():
    counts = np.array(list(workload.LENGTHS.values()))
    lengths = np.repeat(list(workload.LENGTHS), counts)
    assert counts.sum() == 8_486
    assert lengths.mean() == pytest.approx(14.36, abs=0.005)
    assert np.percentile(lengths, [50, 95, 99, 100]).tolist() == [14, 20, 25, 61]


def test_the_pointing_game_by_hand():
    heat = np.array([[0.1, 0.9, 0.2, 0.0], [0.9, 0.3, 0.1, 0.2]])
    np.testing.assert_allclose(pointing.peak(heat), [0.375, 0.25])  # x, y; the first of two
    halves = np.array([[0, 0, 0.5, 1]]), np.array([[0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]])
    corner = np.array([[0.75, 0.75, 1, 1]])
    phrases = pointing.Phrases(list("abc"), np.array([0, 0, 1]), [*halves, corner])
    points = np.array([[0.2, 0.9], [0.4, 0.9], [0.8, 0.74]])
    found = pointing.score(points, phrases)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["other"] == pytest.approx(1 / 3)
    assert found["low"] == 0 and found["high"] == 0.5  # draws: scene 0, both, or scene 1 alone
    chance = pointing.expected(phrases)
    assert chance["accuracy"] == pytest.approx((0.5 + 0.5 + 1 / 16) / 3)
    assert chance["other"] == pytest.approx((0.5 + 0.5 + 0) / 3)


@pytest.mark.real_data
def test_stored_lengths_are_the_measured_ones():
    folder = os.environ.get("CLIP_ITALIAN_REAL_DATA")
    if not folder:
        pytest.skip("CLIP_ITALIAN_REAL_DATA is not set")
    assert workload.measured_lengths(folder) == workload.LENGTHS


@pytest.fixture(scope="module")
def ours():
    made = workload.make_config("tiny", 16)
    return workload.Ours(made, workload.build(made).init(0))


@pytest.mark.parametrize("shares", [1, 2])
def test_groups_and_padded_rows_are_the_same_captions(ours, shares, monkeypatch):
    monkeypatch.delenv("CLIP_ITALIAN_REAL_DATA", raising=False)
    pairs = workload.make_pairs(ours.model, 16, shares=shares)
    share = 16 // shares
    (padded,) = pairs.padded.text
    for number in range(shares):
        rows = [
            (group.input_ids[at], group.attention_mask[at])
            for group in pairs.batch.text
            for per in [len(group.input_ids) // shares]
            for at in range(number * per, (number + 1) * per)
        ]
        assert len(rows) == share
        for row, (ids, mask) in enumerate(rows, start=number * share):
            real = mask.sum()
            assert padded.attention_mask[row].sum() == real
            assert (padded.input_ids[row, :real] == ids[:real]).all()
    assert len({len(group.input_ids[0]) for group in pairs.batch.text}) > 1


def test_ours_and_2021_compute_the_same_loss(ours):
    pairs = workload.make_pairs(ours.model, 16)
    vision, text, dim = workload.SIZES["tiny"]
    module = peers_2021.build(vision, text, dim, frozen=False)
    mean, std = ours.model.image_mean, ours.model.image_std
    batch = peers_2021.place(pairs.padded.pixel_values, *pairs.padded.text[0], mean, std)
    loss = ours.loss(pairs.batch)
    image = ours.features(pairs.batch, "image")
    found = {
        "2021": peers_2021.first_loss(module, ours.state.params, batch),
        "padded": ours.loss(pairs.padded),
        "cached": ours.loss(workload.cached(pairs.batch, image=image)),
    }
    assert found == pytest.approx(dict.fromkeys(found, loss), rel=1e-5)
    assert abs(loss - np.log(16)) > 1e-3  # not the loss of a model that says nothing


def test_ratios_name_only_what_was_timed():
    steps = {"2021": {"s": 4.4, "cpu_s": 6.0}, "ours": {"s": 2.0, "cpu_s": 2.0}}
    assert train_step.ratios({"2021": {"steps": steps}}) == [
        ["2021", "ours", pytest.approx(2.2), 3.0, 1.8, 2.2]
    ]


PROGRAM = """
  %a = (f32[32]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), channel_id=1
  %b = f32[]{} all-reduce(%z)
  ROOT %c = s32[16,2]{1,0} all-gather(%w), dimensions={0}
  %d = (f32[4]{0}, f32[8]{0}) all-gather-start(%v), dimensions={0}
  %e = f32[8]{0} all-gather-done(%d)
  %f = f32[8]{0} add(%e, %e), metadata={op_name="all-reduce(no)"}
"""


def test_collectives_are_read_from_a_program():
    assert scaling.collectives(PROGRAM) == {
        "all-reduce": {"count": 2, "bytes": 4 * 32 + 2 * 6 + 4},
        "all-gather": {"count": 2, "bytes": 4 * 32 + 4 * 8},
    }


def test_expected_collectives_by_hand():
    # 10 parameters; 8 pairs of two embeddings of width 4, and two ids of two words.
    assert scaling.expected(10, 8, 4, 2) == {
        "gradients": 40,
        "columns": 2 * 4 * 8 * 4 + 8 * 16,
        "column gradients": 2 * 4 * 8 * 4,
    }
    assert sum(scaling.expected(10, 8, 4, 1).values()) == 0


def test_communication_by_hand():
    chip = scaling.Chip(peak=1, near=100.0, group=4, far=10.0, source="")
    sums = {"gradients": 300, "column gradients": 100, "columns": 200}
    assert scaling.communication(chip, 1, sums) == 0
    # 2 × 400 + 200 bytes, of which 3/4 leave each of four chips at 100 bytes/s.
    assert scaling.communication(chip, 4, sums) == pytest.approx(7.5)
    # Two groups: besides, each chip's quarter, of which half leaves at 10 bytes/s.
    assert scaling.communication(chip, 8, sums) == pytest.approx(7.5 + 12.5)


def test_a_part_that_does_not_fit_or_fails_is_noted(capsys):
    run = sections.Run(argparse.Namespace(seconds=100.0, steps=2))
    done = []
    run.section("long", 200, done.append)
    run.section("short", 1, done.append)

    def broken(run):
        raise ValueError("no such thing\nand more")

    run.section("broken", 1, broken)
    assert done == [run]
    assert run.notes[0].startswith("long: skipped, needs about 200 s")
    assert run.notes[1] == "broken: failed: ValueError: no such thing"


def test_gpu_rows_and_targets():
    run = sections.Run(argparse.Namespace(seconds=1.0, steps=2))
    run.rows["bf16 product"] = {"tflops": 4.0}
    run.timed("24 tokens", [measure.Turn(4.0, 0.0, None)], pairs=100, flops=6e12)
    row = run.rows["24 tokens"]
    assert (row["ms"], row["pairs/s"], row["tflops"], row["of_product"]) == (2000, 50, 3, 0.75)
    run.rows["real lengths"], run.rows["torch padded"] = {"ms": 10.0}, {"ms": 25.0}
    assert gpu.targets(run.rows) == [
        ["24 tokens: pairs/s", 50, 8_900, 11_500],
        ["ours against torch padded", 2.5, 1.9, 2.5],
    ]


def test_an_index_grows_in_its_own_format(tmp_path):
    arrays = {
        "first": np.array([0, 1, 3]), "ends": np.array([0, 2, 5, 9]),
        "tokens": np.arange(9, dtype=np.uint16), "image_id": np.array([[1, 2], [3, 4]], np.int32),
        "caption_id": np.array([[5, 6], [7, 8], [9, 10]], np.int32),
    }  # fmt: skip
    for name, values in arrays.items():
        values.tofile(tmp_path / f"{name}.bin")
    shapes = {name: [str(values.dtype), list(values.shape)] for name, values in arrays.items()}
    (tmp_path / "index.json").write_text(json.dumps({"arrays": shapes, "histogram": [0, 2]}))
    startup.grow_index(tmp_path, 5)  # twice the two records, and the first once more
    meta = json.loads((tmp_path / "index.json").read_text())
    grown = {
        name: np.fromfile(tmp_path / f"{name}.bin", dtype).reshape(shape)
        for name, (dtype, shape) in meta["arrays"].items()
    }
    assert grown["first"].tolist() == [0, 1, 3, 4, 6, 7]
    assert grown["ends"].tolist() == [0, 2, 5, 9, 11, 14, 18, 20]
    assert grown["tokens"].tolist() == [*range(9), *range(9), 0, 1]
    assert grown["image_id"][:, 0].tolist() == [1, 3, 1, 3, 1]
    assert grown["caption_id"][:, 0].tolist() == [5, 7, 9, 5, 7, 9, 5]
    assert meta["histogram"] == [0, 5]


@pytest.mark.torch
def test_pytorch_computes_the_same_loss_and_the_same_step(ours):
    from benchmarks import peers_torch

    pairs = workload.make_pairs(ours.model, 16)
    own = workload.Ours(ours.config, ours.model.init(0))
    peer = peers_torch.build(*workload.SIZES["tiny"], ours.model.init(0), "cpu")
    loss = peers_torch.make_loss(peer, own.model.image_mean, own.model.image_std, fast=False)
    theirs, mine = peers_torch.make_step(peer, loss), own.stepper(pairs.batch)
    placed = [peers_torch.place(batch, "cpu") for batch in (pairs.padded, pairs.batch)]
    losses = [theirs(placed[i % 2]) for i in range(4)]
    assert losses == pytest.approx([mine() for _ in range(4)], rel=1e-4)
    assert losses[3] < losses[0]


@pytest.mark.slow
def test_forms_of_a_layer_agree():
    with jax.numpy_rank_promotion("allow"):  # as outside of tests
        steps, sums = layer.contestants(1, "float32")
    assert list(steps) == list(sums) and len(steps) == 5
    for part in layer._parts(sums):
        measure.check_equal(part, 1e-4)


def test_a_save_is_timed_and_leaves_nothing(tmp_path):
    given = argparse.Namespace(parameters=640, rounds=1, width=8, folder=str(tmp_path))
    (row,) = checkpoints.run(given)
    assert 0 < row["save returns, s"] <= row["checkpoint is whole after, s"]
    assert 0 < row["of it SHA-256, s"] < row["checkpoint is whole after, s"]
    assert row["steps meanwhile"] >= 1 and row["checkpoint, GB"] > 3 * 640 * 4 * 0.5 / 1e9
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_measured_on_vectors_as_drawn(tmp_path, monkeypatch):
    from clip_italian.demo import approximate

    monkeypatch.setattr(approximate, "HNSW_FROM", 200)
    monkeypatch.setattr(index, "CENTRES", 5)
    monkeypatch.setattr(index, "QUERIES", 20)
    found = index.run(300, 64, tmp_path)
    assert found["kind"].startswith("hnsw") and found["all on disk, MB"] > found["parts, MB"] > 0.1
    assert min(value for name, value in found.items() if "recall" in name) > 0.8
    assert all(found[f"{name} query, p50, ms"] > 0 for name in ("exact", "approximate"))

    encoder = index.Drawn(300, 64)
    pictures = encoder.encode_images(lambda some: [], [str(number) for number in range(300)])
    texts = encoder.encode_texts([""] * 200)
    for rows in (pictures, texts):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    near, far = np.sort(pictures @ pictures[0])[[-2, 0]]
    assert near > 0.3 > far, "there are clusters"
    assert (texts @ texts.T).mean() > 0.5, "texts lie together"
    assert abs((texts @ pictures.T).mean()) < 0.2, "and elsewhere than pictures"
