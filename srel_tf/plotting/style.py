"""Style of all figures: legends, files, and a colour-blind-safe palette with one colour per class."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from srel_tf.errors import FrameError
from srel_tf.frames.schema import check_columns

Colour: TypeAlias = tuple[float, float, float]

PALETTE = sns.color_palette("colorblind")

MEASURE_NAMES = {
    "kl": "KL (Definition 2)",
    "l1": "ℓ1 (Definition 1)",
    "l2": "ℓ2 (Definition 1)",
    "raw_l1": "ℓ1 of raw outputs",
    "raw_l2": "ℓ2 of raw outputs",
    "published_kl": "published KL code",
    "published_l2": "published ℓ2 code",
}
WIDE = 100  # An axis is logarithmic if highest mean / lowest mean is above this number.

_DOTS_PER_INCH = 130
# A PNG file with a palette of 256 colours is about a third as large as an RGB file.
_COLOURS_OF_FILE = 256


def check_rows(frame: pd.DataFrame, *columns: str) -> None:
    """Raise `FrameError` if the frame lacks one of the columns, or has no rows."""
    check_columns(frame, columns)
    if frame.empty:
        raise FrameError("the frame has no rows to draw: give at least one row")


def class_palette(classes: Sequence[str]) -> dict[str, Colour]:
    """Assign a colour to each class. Equal lists of classes give equal colours."""
    return dict(
        zip(classes, sns.color_palette("colorblind", len(classes)), strict=True)
    )


def measure_palette() -> dict[str, Colour]:
    """Assign a colour to each measure, the same in every figure.

    Measures that are drawn in one panel have colours that are easy to distinguish.
    """
    colours = sns.color_palette("colorblind", 10)
    places = {
        "kl": 0,
        "l1": 1,
        "l2": 8,
        "raw_l1": 2,
        "raw_l2": 9,
        "published_kl": 7,
        "published_l2": 4,
    }
    return {measure: colours[place] for measure, place in places.items()}


def measure_name(measure: str) -> str:
    """Return the name of a measure for titles and legends."""
    return MEASURE_NAMES.get(measure, measure)


def is_wide(lowest: float, highest: float) -> bool:
    """Return whether positive values from `lowest` to `highest` need a logarithmic axis."""
    return highest > WIDE * lowest > 0


def new_figure(
    rows: int,
    columns: int,
    width: float = 4.2,
    height: float = 3.2,
    **kwargs: Any,
) -> tuple[Figure, np.ndarray]:
    """Make a figure and its axes without pyplot, which would keep global state or open a window.

    Args:
        rows: Number of rows of panels.
        columns: Number of columns of panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
        **kwargs: Further arguments of `Figure.subplots`.

    Returns:
        The figure, and its axes, [rows, columns].
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    with sns.axes_style("whitegrid"):
        axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, axes


def mean_and_band(
    ax: Axes,
    x: np.ndarray | pd.Index | pd.Series,
    mean: pd.Series,
    low: pd.Series,
    high: pd.Series,
    colour: Colour | str,
    alpha: float = 0.2,
    **line: Any,
) -> None:
    """Draw a curve and a band of the same colour.

    Args:
        ax: The panel.
        x: Values on the x-axis.
        mean: Values of the curve.
        low: Lower end of the band.
        high: Upper end of the band.
        colour: Colour of the curve and the band.
        alpha: Opacity of the band.
        **line: Further arguments of `Axes.plot`, such as a label.
    """
    ax.plot(x, mean, color=colour, **line)
    ax.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)


def legend_below(
    figure: Figure,
    handles: Sequence[Artist],
    labels: Sequence[str],
) -> None:
    """Put one legend, in a single row, below all panels.

    Args:
        figure: The figure.
        handles: Artists to show in the legend.
        labels: Labels, one per artist.
    """
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        fontsize="small",
    )


def population_deviation(values: pd.Series) -> tuple[float, float]:
    """Return the mean ± one population standard deviation, as in the paper's figures, for seaborn's `errorbar`."""
    mean = values.mean()
    deviation = values.std(ddof=0)
    return mean - deviation, mean + deviation


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file.

    Args:
        figure: The figure.
        path: File name. Its ending selects the format: PNG, PDF or SVG.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from matplotlib.figure import Figure
        >>> from srel_tf.plotting import save_figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_figure(Figure(figsize=(1, 1)), Path(folder) / "empty.png")
        ...     print(path.name, path.stat().st_size > 0)
        empty.png True
    """
    path = Path(path)
    if path.suffix != ".png":
        figure.savefig(path)
        return path
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DOTS_PER_INCH)
    image = Image.open(drawn).convert("RGB")
    reduced = image.quantize(_COLOURS_OF_FILE, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
    return path
