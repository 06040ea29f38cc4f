"""What all figures share: a colour-blind-safe palette in which a class keeps its colour, and files."""

import io
from pathlib import Path

import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

MEASURE_NAMES = {
    "kl": "KL (Definition 2)",
    "l1": "ℓ1 (Definition 1)",
    "l2": "ℓ2 (Definition 1)",
    "raw_l1": "ℓ1 of raw outputs",
    "raw_l2": "ℓ2 of raw outputs",
    "published_kl": "published KL code",
    "published_l2": "published ℓ2 code",
}
WIDE = 100  # The factor between the lowest mean and the highest from which on an axis is logarithmic.


def class_palette(classes):
    """A colour for each class, the same in every panel and figure that shows the same classes."""
    return dict(zip(classes, sns.color_palette("colorblind", len(classes)), strict=True))


def measure_palette():
    """A colour for each measure, the same in every figure; those that are drawn together are far apart."""
    colours = sns.color_palette("colorblind", 10)
    places = {"kl": 0, "l1": 1, "l2": 8, "raw_l1": 2, "raw_l2": 9, "published_kl": 7, "published_l2": 4}
    return {measure: colours[place] for measure, place in places.items()}


def new_figure(rows, columns, width=4.2, height=3.2, **kwargs):
    """A figure and its array of axes, without pyplot: no global state, no window."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    with sns.axes_style("whitegrid"):
        axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, axes


def population_deviation(values):
    """Band of ± one population standard deviation around the mean, as in the paper's figures (for seaborn)."""
    mean, deviation = values.mean(), values.std(ddof=0)
    return mean - deviation, mean + deviation


def save_figure(figure, path):
    """Write a figure to `path` (PNG, PDF, SVG by its ending) and return the path."""
    path = Path(path)
    if path.suffix != ".png":
        figure.savefig(path)
        return path
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    # A palette of 256 colours makes a file of a third of the size.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
