"""The report as JSON with the arrays beside it, and the tables made from it."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from markdown_it import MarkdownIt

from clip_italian.config import ConfigError
from clip_italian.evaluation import report

# What version 1 wrote: must be read for ever, or refused with a way out.
VERSION_1 = (Path(__file__).parent / "fixtures" / "report_v1.json").read_text(encoding="utf-8")

HEAD = """{"format_version": 2, "command": "c", "step": null, "training_data": "", "versions": {},
"hardware": {}, "comparisons": [], "seeds": [], """


def result(model="this run", **fields):
    shared = {"set": "sample", "protocol": "records_validation", "data_fingerprint": "0f" * 32}
    counts = {"task": "retrieval", "images": 1696, "captions": 8486}
    return report.Result(model=model, **{**shared, **counts, **fields})


RUN = result(
    metrics={
        "text_to_image/R@1": 0.6125,
        "text_to_image/R@5": 0.9,
        "text_to_image/R@10": 1.0,
        "text_to_image/MRR@5": 0.51,
        "text_to_image/MRR@10": 0.52041,
        "text_to_image/median_rank": 1.5,
        "image_to_text/R@1": 0.0,
        "image_to_text/R@5": 0.05,
        "image_to_text/R@10": 0.0999,
        "image_to_text/MRR@5": 0.29,
        "image_to_text/MRR@10": 0.3,
        "image_to_text/median_rank": 12.0,
    },
)
HISTOGRAMS = result("histograms", metrics={"text_to_image/R@1": 0.03})
CERTAIN = result(
    "a model whose name leaves no room for numbers, and two | signs",
    metrics={"text_to_image/R@1": 0.774, "text_to_image/median_rank": 12.0},
    intervals={"text_to_image/R@1": (0.755, 0.7931), "text_to_image/median_rank": (11, 14.5)},
)
CLASSES = result(
    task="zero_shot",
    variant="it, {bare}",
    captions=35,
    metrics={"zero_shot/acc@1": 0.5, "zero_shot/acc@5": 0.875},
    details={"per_class": [["n1", "tinca", 1.0, 8], ["n2", "gatto", None, 0]]},
)
TEST = {
    "set": "sample", "task": "zero_shot", "variant": "legacy, {}", "metric": "zero_shot/acc@1",
    "a": "old", "b": "new", "difference": 0.0234, "low": -0.001, "high": 0.05, "p_value": 0.0004,
}  # fmt: skip
SEEDS = {
    "set": "sample", "task": "retrieval", "metric": "text_to_image/median_rank", "model": "new",
    "mean": 12.5, "sd": 0.75, "seeds": 3,
}  # fmt: skip


def make(*results, **fields):
    return report.make_report(results, command="python run_hybrid_clip.py --config è.py", **fields)


def test_report_says_how_the_numbers_came_about():
    made = make(RUN, step=1500, training_data="ab", timing={"encoding": 2.5})
    assert made["format_version"] == 2
    assert made["step"] == 1500
    assert made["training_data"] == "ab"
    assert made["timing"] == {"encoding": 2.5}
    assert made["command"] == "python run_hybrid_clip.py --config è.py"
    assert made["versions"]["jax"] == jax.__version__
    assert made["hardware"]["devices"] == 8  # the fake ones of conftest.py
    assert made["comparisons"] == made["seeds"] == []
    assert made["results"] == [
        {
            "model": "this run", "model_fingerprint": "", "set": "sample",
            "protocol": "records_validation", "data_fingerprint": "0f" * 32, "language": "",
            "task": "retrieval", "variant": "", "images": 1696, "captions": 8486,
            "metrics": RUN.metrics, "intervals": {}, "details": {},
        }
    ]  # fmt: skip


def test_dump_and_parse_give_the_report_back():
    made = make(RUN, CERTAIN, CLASSES, comparisons=[TEST], seeds=[SEEDS])
    text = report.dump(made)
    assert report.parse(text) == made
    assert report.results(made)[2].details == CLASSES.details
    assert report.results(made)[1].intervals["text_to_image/R@1"] == [0.755, 0.7931]
    assert "è.py" in text  # readable, not escaped


def test_a_number_that_is_not_finite_is_not_written():
    broken = make(result(metrics={"text_to_image/R@1": math.nan, "text_to_image/R@5": 0.5}))
    with pytest.raises(ValueError, match="JSON compliant"):
        report.dump(broken)
    assert "nan" not in report.markdown(broken) + report.table(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 3}', r"format_version 3 cannot be read.* update"),
        ("{}", r"format_version None cannot be read"),
        ("[1]", r"format_version None cannot be read"),
        ("{", "this is no JSON"),
        ('{"format_version": 1, "results": []}', "not what format_version 1 holds.*'comm"),
        ('{"format_version": 2}', "not what format_version 2 holds.*'command'"),
        (HEAD + '"results": [{"model": "m"}]}', "not what .*required keyword"),
        (HEAD + '"results": [3]}', "not what .*holds"),
        ('{"format_version": 2, "results": []}', "not what .*'command'"),
    ],
)
def test_what_is_no_report_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        report.parse(text)


def test_version_1_is_migrated():
    made = report.parse(VERSION_1)
    assert (made["format_version"], made["step"]) == (2, 1500)
    assert made["training_data"] == ""  # not known: the fingerprint was that of the set
    found = report.results(made)
    assert [(one.model, one.task) for one in found] == [
        ("this run", "retrieval"), ("this run", "zero_shot"), ("histograms", "retrieval"),
    ]  # fmt: skip
    assert found[1].metrics == {"zero_shot/acc@1": 0.125, "zero_shot/acc@5": 0.25}
    assert found[0].metrics["text_to_image/median_rank"] == 1.5
    assert "zero_shot/acc@1" not in found[0].metrics
    for one in found:
        assert (one.protocol, one.data_fingerprint) == ("records_validation", "0f" * 32)
        assert (one.set, one.images, one.captions, one.intervals) == ("labels", 50, 50, {})
    assert report.parse(report.dump(made)) == made


def test_items_come_back_with_their_result(tmp_path):
    ranks, cluster = np.array([1, 3, 70000]), np.array([0, 0, 1], np.int32)
    items = [
        {"text_to_image": ranks, "text_to_image/cluster": cluster},
        {},
        {"ranks": np.array([1, 2])},
    ]
    made = make(RUN, HISTOGRAMS, CLASSES)
    report.write(tmp_path / "deep" / "folder", made, items)
    again, arrays = report.read(tmp_path / "deep" / "folder")
    assert again == made
    assert [sorted(one) for one in arrays] == [sorted(one) for one in items]
    assert arrays[0]["text_to_image"].tolist() == [1, 3, 70000]
    assert arrays[0]["text_to_image/cluster"].dtype == np.int32
    assert arrays[2]["ranks"].tolist() == [1, 2]
    (tmp_path / "deep" / "folder" / "items.npz").unlink()
    assert report.read(tmp_path / "deep" / "folder") == (made, [{}, {}, {}])


def test_items_that_cannot_be_written_are_errors(tmp_path):
    with pytest.raises(ValueError, match="1 items were given for 2 results"):
        report.write(tmp_path, make(RUN, RUN), [{}])
    with pytest.raises(ValueError, match=r"\['r0/ranks'\] hold no numbers"):
        report.write(tmp_path, make(RUN), [{"ranks": np.array([None, 1])}])
    assert not list(tmp_path.iterdir())


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"report.json cannot be read .* give the folder that"):
        report.read(tmp_path)
    report.write(tmp_path, make(RUN), [{"ranks": np.array([1])}])
    np.savez(tmp_path / "items.npz", **{"r1/ranks": np.array([1])})
    with pytest.raises(ConfigError, match=r"items.npz cannot be read or belongs to another"):
        report.read(tmp_path)
    for content in (b"PK\3\4 cut short", b"", b"none"):
        (tmp_path / "items.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"items.npz cannot be read or belongs to another"):
            report.read(tmp_path)
    np.savez(tmp_path / "items.npz", **{"r0/ranks": np.array([None])})  # a pickle
    with pytest.raises(ConfigError, match="allow_pickle=False"):
        report.read(tmp_path)


def test_table_of_one_model():
    assert report.table(make(RUN)) == (
        "sample: 1,696 images, 8,486 captions; chance R@1 of text → image 0.059%\n"
        "              R@1 %  R@5 %  R@10 %  MRR@10 %  median rank\n"
        "text → image   61.3   90.0   100.0      52.0          1.5\n"
        "image → text    0.0    5.0    10.0      30.0           12\n"
    )


def test_table_groups_models_by_direction_and_leaves_gaps():
    assert report.table(json.loads(report.dump(make(RUN, HISTOGRAMS)))) == (
        "sample: 1,696 images, 8,486 captions; chance R@1 of text → image 0.059%\n"
        "              R@1 %  R@5 %  R@10 %  MRR@10 %  median rank\n"
        "text → image\n"
        "  this run     61.3   90.0   100.0      52.0          1.5\n"
        "  histograms    3.0      -       -         -            -\n"
        "image → text\n"
        "  this run      0.0    5.0    10.0      30.0           12\n"
    )


def test_table_cuts_nothing_and_shows_how_sure_a_number_is():
    assert report.table(make(RUN, CERTAIN)).splitlines() == [
        "sample: 1,696 images, 8,486 captions; chance R@1 of text → image 0.059%",
        "                  R@1 %  R@5 %  R@10 %  MRR@10 %  median rank",
        "text → image",
        "  this run    61.3        90.0   100.0      52.0     1.5",
        "  a model whose name leaves no room for numbers, and two | signs",
        "              77.4 ±1.9      -       -         -      12 ±2.5",
        "image → text",
        "  this run     0.0         5.0    10.0      30.0      12",
        "",
        "± is the farther end of the 95% interval; the report has both.",
    ]


def test_table_cuts_no_name_of_a_set():
    name = "a-set-" + "x" * 80
    text = report.table(make(result(set=name, metrics={"text_to_image/R@1": 0.5})))
    assert text.splitlines()[0] == f"{name}:"


def test_table_of_other_tasks_and_of_version_1():
    probes = {"contrast/accuracy": 0.55, "contrast/left_right/accuracy": 0.6,
              "contrast/left_right/group": 0.2}  # fmt: skip
    pairs = result(task="contrast", images=4, captions=8, metrics=probes)
    assert report.table(make(CLASSES, pairs)) == (
        "sample, zero-shot classification: 1,696 images, 35 texts, 2 classes; chance\n"
        "  acc@1 50%\n"
        "                       acc@1 %  acc@5 %\n"
        "this run (it, {bare})     50.0     87.5\n"
        "\n"
        "sample, contrast probes: 4 images, 8 texts; by chance accuracy 50%, text 25%,\n"
        "  image 25%, group 17%\n"
        "            accuracy %  group %\n"
        "all               55.0        -\n"
        "left right        60.0     20.0\n"
    )
    text = report.table(report.parse(VERSION_1))
    assert "labels, zero-shot classification: 50 images, 50 texts\n" in text
    assert "          acc@1 %  acc@5 %\nthis run     12.5     25.0\n" in text


def test_table_tells_variants_and_data_apart():
    legacy = result(
        task="zero_shot", variant="legacy", captions=7, metrics={"zero_shot/acc@1": 0.4}
    )
    lines = report.table(make(CLASSES, legacy)).splitlines()
    assert lines[0].startswith("sample, zero-shot classification: 1,696 images, 7 to 35 texts")
    assert [line.split("  ")[0] for line in lines[-2:]] == [
        "this run (it, {bare})", "this run (legacy)",
    ]  # fmt: skip
    other = result(data_fingerprint="11", metrics={"text_to_image/R@1": 0.5})
    assert report.table(make(RUN, other)).count("sample: ") == 2


def test_table_ends_with_comparisons_and_seeds():
    text = report.table(make(CLASSES, comparisons=[TEST], seeds=[SEEDS]))
    assert "new minus old, in points:\n" in text
    line = f"{'  sample, zero-shot acc@1 (legacy, {})':54}+2.3 [-0.1, 5.0]  p <0.001"
    assert line in text.splitlines()
    line = f"{'  new: sample, text → image median rank':59}12.5 ± 0.75 (3 seeds)"
    assert line in text.splitlines()
    assert all(len(one) <= 80 for one in text.splitlines())
    long = {**TEST, "variant": "x" * 70}
    assert ("  sample, zero-shot acc@1 (" + "x" * 70 + ")") in report.table(
        make(CLASSES, comparisons=[long])
    ).splitlines()


def cells(markdown):
    """Texts of all cells, row by row, of each table."""
    tables = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and token.level >= 4:
            tables[-1][-1].append("".join(part.content for part in token.children))
    return tables


def test_markdown_has_every_number_with_its_interval():
    tables = cells(report.markdown(make(RUN, CERTAIN, CLASSES, comparisons=[TEST], seeds=[SEEDS])))
    assert tables[0][0] == [
        "what", "model", "R@1 %", "R@5 %", "R@10 %", "MRR@5 %", "MRR@10 %", "median rank",
    ]  # fmt: skip
    assert tables[0][1][:3] == ["text → image", "this run", "61.3"]
    assert tables[0][2] == [
        "text → image", CERTAIN.model, "77.4 [75.5, 79.3]", "", "", "", "", "12 [11, 14.5]",
    ]  # fmt: skip
    assert tables[0][3][:4] == ["image → text", "this run", "0.0", "5.0"]
    assert tables[1] == [
        ["model", "names and prompts", "acc@1 %", "acc@5 %"],
        ["this run", "it, {bare}", "50.0", "87.5"],
    ]
    assert tables[2][1] == [
        "sample, zero-shot acc@1 (legacy, {})", "old", "new", "2.3 [-0.1, 5.0]", "<0.001",
    ]  # fmt: skip
    assert tables[3][1] == ["sample, text → image median rank", "new", "12.5", "0.75", "3"]
    assert all(len(row) == len(table[0]) for table in tables for row in table)


def test_markdown_says_how_the_numbers_came_about():
    model = result(model_fingerprint="fe" * 8, language="it", metrics={"text_to_image/R@1": 0.5})
    text = report.markdown(make(model, step=12000, training_data="cd", timing={"encoding": 2.5}))
    assert (
        "Protocol `records_validation`; language it; data `0f0f0f0f0f0f`; 1,696 images, 8,486 "
        "captions; chance R@1 of text → image 0.059%.\n"
    ) in text
    for line in (
        "- training step: 12,000", "- fingerprint of the training data: cd",
        "- fingerprint of this run: fefefefefefefefe", "- devices: 8", f"- jax: {jax.__version__}",
        "- seconds, encoding: 2.5", "    python run_hybrid_clip.py --config è.py",
    ):  # fmt: skip
        assert line in text.splitlines()


def test_markdown_shows_hostile_names_as_text():
    name = "<script>`x` [a](//b.c) ![d](e) **f** | g\n# h"
    text = report.markdown(make(result(name, set=name, metrics={"text_to_image/R@1": 0.5})))
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script>" not in shown and "<a " not in shown and "<img" not in shown
    assert "<strong>" not in shown and shown.count("<h1>") == 1
    assert cells(text)[0][1][1] == " ".join(name.split())
