"""Heat maps: the right size, and every cell where its layer and module are."""

import io

import numpy as np
import pytest

from clinmerge_jax.report.heatmap import HeatMap, Panel, draw, png

ROWS = ["q", "k", "v", "o", "gate", "up", "down", "norms"]
OUTSIDE = ["embeddings", "final norm", "head"]


def heat_map(values_RL, outside_M=(), **scale):
    """A picture with a single panel, or one for each array of a list."""
    panels = values_RL if isinstance(values_RL, list) else [values_RL]
    panels = [Panel(f"panel {index}", values, np.array(outside_M, float)) for index, values in enumerate(panels)]
    rows, layers = panels[0].values_RL.shape
    return HeatMap("title", "unit", ROWS[:rows], range(layers), OUTSIDE[: len(outside_M)], panels, **scale)


def drawn(heat_map):
    """The figure of a picture, with its pixels drawn."""
    figure = draw(heat_map)
    figure.canvas.draw()
    return figure


def colour_at(figure, axes, row, column):
    """The colour in 0..1 near a corner of a cell, where no figure is written."""
    image = np.asarray(figure.canvas.buffer_rgba())
    x, y = axes.transData.transform((column - 0.4, row - 0.35))
    return image[image.shape[0] - 1 - int(y), int(x)] / 255


def read(data):
    """The pixels of a PNG file."""
    import matplotlib.image

    return matplotlib.image.imread(io.BytesIO(data))


@pytest.mark.parametrize("layers", [2, 32])
def test_a_value_lands_in_the_cell_of_its_module_and_layer(layers):
    for row, layer in ((0, 0), (3, 1), (7, layers - 1)):
        values = np.zeros((8, layers))
        values[row, layer] = 1.0
        figure = drawn(heat_map(values, [0.0, 0.0, 0.0]))
        axes = figure.axes[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        numbers = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ROWS and numbers == [str(n) for n in range(layers)]
        high, low = (0.993, 0.906, 0.144, 1.0), (0.267, 0.005, 0.329, 1.0)  # the two ends of viridis
        assert colour_at(figure, axes, row, layer) == pytest.approx(high, abs=0.01)
        for other in ((row - 1) % 8, layer), (row, (layer + 1) % layers):
            assert colour_at(figure, axes, *other) == pytest.approx(low, abs=0.01)


def test_what_lies_outside_the_layers_has_cells_of_its_own():
    figure = drawn(heat_map(np.zeros((8, 4)), [0.0, 1.0, np.nan]))
    beside = figure.axes[1]
    assert [label.get_text() for label in beside.get_yticklabels()] == OUTSIDE
    colours = [colour_at(figure, beside, row, 0) for row in range(3)]
    assert colours[0] == pytest.approx((0.267, 0.005, 0.329, 1.0), abs=0.01)
    assert colours[1] == pytest.approx((0.993, 0.906, 0.144, 1.0), abs=0.01)
    assert colours[2] == pytest.approx((0.85, 0.85, 0.85, 1.0), abs=0.01), "no figure is grey"
    assert beside.get_position().x0 > figure.axes[0].get_position().x1


def test_a_diverging_scale_is_white_at_its_centre_and_symmetric():
    values = np.array([[0.5, 0.9], [0.1, 0.3]])
    figure = drawn(heat_map(values, centre=0.5, percent=True))
    neutral, high, low = (colour_at(figure, figure.axes[0], *cell) for cell in ((0, 0), (0, 1), (1, 0)))
    assert neutral[:3].min() > 0.95
    assert high[0] > high[2] and low[2] > low[0], "red above, blue below"
    assert figure.axes[-1].get_ylim() == pytest.approx((0.1, 0.9))


def test_panels_share_one_scale():
    figure = drawn(heat_map([np.full((8, 3), 1.0), np.full((8, 3), 4.0)], [2.0]))
    first, _, second, _, bar = figure.axes
    assert bar.get_ylim() == (0.0, 4.0) and bar.get_ylabel() == "unit"
    assert tuple(colour_at(figure, first, 0, 0)) != tuple(colour_at(figure, second, 0, 0))


def test_few_cells_show_their_figures_and_many_do_not():
    few = draw(heat_map(np.full((8, 4), 0.1234), [0.5], percent=True))
    assert [text.get_text() for text in few.axes[0].texts] == ["12.3"] * 32
    assert not draw(heat_map(np.full((8, 32), 0.1234))).axes[0].texts


def test_labels_of_32_layers_and_of_80_do_not_touch():
    for layers, panels in ((32, 3), (80, 1)):
        figure = drawn(heat_map([np.random.default_rng(0).random((8, layers))] * panels, [0.1, 0.2, 0.3]))
        for axes in figure.axes[:-1]:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [label.get_window_extent() for label in labels]
                assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[1:]))
        names = [label.get_window_extent().x1 for label in figure.axes[1].get_yticklabels()]
        assert max(names) < figure.axes[-1].get_window_extent().x0, "clear of the colour bar"


def test_the_file_has_the_figures_size_and_depends_on_the_values_alone():
    values = np.random.default_rng(0).random((8, 6))
    first, again, other = png(heat_map(values)), png(heat_map(values)), png(heat_map(values.T[:, :6] * 0.5))
    assert first == again and first != other
    figure = drawn(heat_map(values))
    assert read(first).shape[:2] == tuple(round(inches * figure.dpi) for inches in figure.get_size_inches()[::-1])
    assert np.unique(read(first).reshape(-1, 4), axis=0).shape[0] > 40


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_picture_without_any_figure_is_drawn_too(value):
    for centre in (None, 0.0):
        assert png(heat_map(np.full((8, 2), value), [value], centre=centre)).startswith(b"\x89PNG")
