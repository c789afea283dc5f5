"""The report as JSON, and the table made from it."""

import json
import math

import jax
import pytest

from clip_italian.evaluation import report

RUN = report.Result(
    model="this run",
    set="sample",
    images=1696,
    captions=8486,
    metrics={
        "text_to_image/R@1": 0.6125,
        "text_to_image/R@5": 0.9,
        "text_to_image/R@10": 1.0,
        "text_to_image/MRR@10": 0.52041,
        "text_to_image/median_rank": 1.5,
        "image_to_text/R@1": 0.0,
        "image_to_text/R@5": 0.05,
        "image_to_text/R@10": 0.0999,
        "image_to_text/MRR@10": 0.3,
        "image_to_text/median_rank": 12.0,
    },
)
HISTOGRAMS = report.Result("histograms", "sample", 1696, 8486, {"text_to_image/R@1": 0.03})

# What version 1 wrote: must be read for ever, or refused with a way out.
VERSION_1 = """{"format_version": 1, "protocol": "records_validation",
"data_fingerprint": "0f", "step": null, "results": [{"model": "m", "set": "labels", "images": 50,
"captions": 50, "metrics": {"text_to_image/R@1": 0.5, "zero_shot/acc@1": 0.125,
"zero_shot/acc@5": 0.25}}], "versions": {}, "hardware": {}, "command": "c"}"""


def make(results=(RUN,)):
    return report.make_report(
        results,
        protocol="records_validation",
        data_fingerprint="0f",
        command="python run_hybrid_clip.py --config è.py",
        step=1500,
    )


def test_report_says_how_the_numbers_came_about():
    made = make()
    assert made["format_version"] == 1
    assert made["protocol"] == "records_validation"
    assert made["data_fingerprint"] == "0f"
    assert made["step"] == 1500
    assert made["command"] == "python run_hybrid_clip.py --config è.py"
    assert made["versions"]["jax"] == jax.__version__
    assert made["hardware"]["devices"] == 8  # the fake ones of conftest.py
    assert made["results"] == [
        {
            "model": "this run",
            "set": "sample",
            "images": 1696,
            "captions": 8486,
            "metrics": RUN.metrics,
        }
    ]


def test_dump_and_parse_give_the_report_back():
    text = report.dump(make())
    assert report.parse(text) == make()
    assert "è.py" in text  # readable, not escaped


def test_a_number_that_is_not_finite_is_not_written():
    broken = report.Result("m", "s", 1, 1, {"text_to_image/R@1": math.nan})
    with pytest.raises(ValueError, match="JSON compliant"):
        report.dump(make([broken]))


@pytest.mark.parametrize("text", ['{"format_version": 2}', "{}", "[1]"])
def test_other_formats_are_refused(text):
    with pytest.raises(ValueError, match=r"format_version (2|None) cannot be read.* update"):
        report.parse(text)


def test_table_of_one_model():
    assert report.table(make()) == (
        "sample: 1,696 images, 8,486 captions; chance R@1 of text → image 0.059%\n"
        "              R@1 %  R@5 %  R@10 %  MRR@10 %  median rank\n"
        "text → image   61.3   90.0   100.0      52.0          1.5\n"
        "image → text    0.0    5.0    10.0      30.0           12\n"
    )


def test_table_names_models_when_there_are_two_and_leaves_gaps():
    assert report.table(json.loads(report.dump(make([RUN, HISTOGRAMS])))) == (
        "sample: 1,696 images, 8,486 captions; chance R@1 of text → image 0.059%\n"
        "                           R@1 %  R@5 %  R@10 %  MRR@10 %  median rank\n"
        "text → image (this run)     61.3   90.0   100.0      52.0          1.5\n"
        "image → text (this run)      0.0    5.0    10.0      30.0           12\n"
        "text → image (histograms)    3.0      -       -         -            -\n"
        "image → text (histograms)      -      -       -         -            -\n"
    )


def test_table_of_a_version_1_report_with_zero_shot():
    assert report.table(report.parse(VERSION_1)) == (
        "labels: 50 images, 50 captions; chance R@1 of text → image 2%\n"
        "              R@1 %  R@5 %  R@10 %  MRR@10 %  median rank\n"
        "text → image   50.0      -       -         -            -\n"
        "image → text      -      -       -         -            -\n"
        "zero-shot: acc@1 12.5%, acc@5 25.0%\n"
    )
