"""Loss and accuracy during training, as in Figures 15–17 of the paper."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import new_figure, population_deviation


def plot_history(history: pd.DataFrame) -> Figure:
    """Plot loss (left) and accuracy (right) on the training set and the test set over the epochs.

    Lines are means over runs. Bands are ± one population standard deviation over runs.

    Args:
        history: Columns run, epoch (number of epochs done), split ("train" or "test"), loss, accuracy.

    Returns:
        The figure.

    Raises:
        FrameError: If the frame lacks a column.

    Example:
        >>> import pandas as pd
        >>> from srel_tf.plotting import plot_history
        >>> history = pd.DataFrame({"run": "a", "epoch": [0, 1], "split": "train"})
        >>> figure = plot_history(history.assign(loss=[2.0, 0.5], accuracy=[0.1, 0.9]))
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['loss (nats)', 'accuracy']
    """
    check_columns(history, ["run", "epoch", "split", "loss", "accuracy"])
    has_runs = history["run"].nunique() > 1
    figure, axes = new_figure(1, 2)
    labels = {"loss": "loss (nats)", "accuracy": "accuracy"}
    for ax, (quantity, label) in zip(axes[0], labels.items(), strict=True):
        sns.lineplot(
            history,
            x="epoch",
            y=quantity,
            hue="split",
            style="split",
            markers=True,
            palette="colorblind",
            errorbar=population_deviation if has_runs else None,
            ax=ax,
        )
        ax.set(xlabel="epochs", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(title=None)
    axes[0, 1].set_ylim(top=1)
    return figure
