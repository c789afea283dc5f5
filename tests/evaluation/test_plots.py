"""Curves: what is read from the log, and what is drawn where."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from clip_italian.evaluation.plots import plot_curves, png, read_metrics


def curves(*names):
    return {name: (np.array([10.0, 20.0]), np.array([0.25, 0.75])) for name in names}


def labels(axes):
    return [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]


def test_read_metrics_sorts_and_lets_the_later_line_hold():
    read = read_metrics(
        [
            '{"step": 10, "train/loss": 5.0, "note": "text"}\n',
            '{"step": 20, "train/loss": 4.0}\n',
            '{"step": 30, "train/loss": 9.0}\n',
            '{"step": 40, "train/lo\n',  # killed here, resumed from step 20
            "30\n",
            "\n",
            '{"step": 30, "train/loss": 3.0, "text_to_image/R@1": NaN}\n',
            '{"step": 25, "train/loss": 3.5}\n',
        ]
    )
    assert list(read) == ["train/loss", "text_to_image/R@1"]
    steps, values = read["train/loss"]
    assert steps.tolist() == [10, 20, 25, 30]
    assert values.tolist() == [5.0, 4.0, 3.5, 3.0]
    assert math.isnan(read["text_to_image/R@1"][1][0])


def test_each_metric_goes_to_its_panel():
    figure = plot_curves(
        curves(
            "train/loss",
            "validation/loss",
            "pairs_per_second",
            "learning_rate/vision",
            "learning_rate/text",
            "text_to_image/R@1",
            "text_to_image/R@10",
            "text_to_image/MRR@10",
            "text_to_image/median_rank",
            "image_to_text/R@5",
            "zero_shot/acc@1",
            "rate/pairs_per_second",
        )
    )
    assert {axes.get_title("left"): labels(axes) for axes in figure.axes} == {
        "Loss": ["train", "validation"],
        "Learning rate": ["vision", "text"],
        "Text → image recall": ["R@1", "R@10"],
        "Image → text recall": ["R@5"],
        "Zero-shot accuracy": ["acc@1"],
        "Training speed": ["pairs_per_second"],
    }
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == [0.25, 0.75]


def test_several_sets_keep_their_names_and_colours():
    names = [f"{one}/text_to_image/R@{k}" for one in ("wit", "coco") for k in (1, 5, 10)]
    (axes,) = plot_curves(curves(*names)).axes
    assert labels(axes) == ["wit R@1", "wit R@5", "wit R@10", "coco R@1", "coco R@5", "coco R@10"]
    lines = axes.get_lines()
    assert lines[0].get_color() == lines[3].get_color() != lines[1].get_color()
    assert lines[0].get_linestyle() == "-"
    assert lines[3].get_linestyle() == "--"


def test_phases_are_vertical_lines_with_their_label():
    figure = plot_curves(curves("loss"), [(0, "projections"), (15, "all")], title="A run")
    (axes,) = figure.axes
    boundaries = [line for line in axes.get_lines() if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in boundaries] == [15]
    assert [text.get_text().strip() for text in axes.texts] == ["projections", "all"]
    assert figure.get_suptitle() == "A run"


def test_png_is_a_picture_with_ink():
    image = Image.open(io.BytesIO(png(plot_curves(curves("train/loss", "text_to_image/R@1")))))
    assert image.format == "PNG"
    assert image.width > 2 * image.height  # two panels side by side
    assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_a_log_without_any_of_them_is_an_error():
    with pytest.raises(ValueError, match="no loss"):
        plot_curves(curves("pairs_per_second", "smooth_loss", "text_to_image/MRR@1"))


def test_a_phase_that_the_run_has_not_reached_is_left_out():
    figure = plot_curves(curves("train/loss"), [(0, "projection"), (4000, "vision, projection")])
    (axes,) = figure.axes
    assert [text.get_text().strip() for text in axes.texts] == ["projection"]
    assert len(png(figure)) > 1000
