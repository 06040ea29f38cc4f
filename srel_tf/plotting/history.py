"""Loss and accuracy over training, as in Figures 15–17 of the paper."""

import seaborn as sns

from srel_tf.frames.schema import check_columns
from srel_tf.plotting.style import new_figure, population_deviation


def plot_history(history):
    """Loss (left) and accuracy (right) by epoch on the training and the test set.

    Lines are means over runs, bands their population standard deviation.

    history: columns run, epoch (epochs done), split ("train" or "test"), loss, accuracy.
    """
    check_columns(history, ["run", "epoch", "split", "loss", "accuracy"])
    figure, axes = new_figure(1, 2)
    for ax, quantity, unit in zip(axes[0], ("loss", "accuracy"), (" (nats)", ""), strict=True):
        sns.lineplot(
            history,
            x="epoch",
            y=quantity,
            hue="split",
            style="split",
            markers=True,
            palette="colorblind",
            errorbar=population_deviation if history["run"].nunique() > 1 else None,
            ax=ax,
        )
        ax.set(xlabel="epochs", ylabel=f"{quantity}{unit}")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(title=None)
    axes[0, 1].set_ylim(top=1)
    return figure
