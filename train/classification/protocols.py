"""Presets of `python -m train.classification`.

    defined     the definitions of the paper
    published   the procedure of the published code
    crossed     all measures of the paper and of the published code, each with all update rules

`--protocol NAME` sets the defaults of other options; options on the command line override them.
"""

from typing import Any

from srel_tf import OptionError

# The classification recipe of the published code: ResNet-18 without normalisation, Adam with L2 decay, 7 epochs, images
# cropped and flipped once, 20 probe images per class. The table of recipes in the paper is missing in the text that we
# have; presumably it has the same values.
PUBLISHED_RECIPE = {
    "model": "resnet18",
    "epochs": 7,
    "batch_size": 256,
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "augment": "frozen",
    "per_class": 20,
}

DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"classes": ["airplane", "automobile", "ship"]},
    "cifar100": {"classes": ["motorcycle", "orange", "wardrobe"], "batch_size": 25},
    "svhn": {"classes": ["0", "2", "4"]},
    "svhn_cropped": {"classes": ["0", "2", "4"]},
    # The paper does not use this set. A run on digits takes minutes and needs no download. The images are not
    # augmented, because a shift by up to 4 of 8 pixels would destroy a digit.
    "digits": {
        "classes": ["3", "5", "8"],
        "model": "cnn",
        "epochs": 10,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "augment": "none",
    },
}

DEFINED, PUBLISHED = ["kl", "l1", "l2"], ["published_kl", "published_l2"]

PROTOCOLS: dict[str, dict[str, Any]] = {
    # Definitions 1–3: a plain SGD step with the training's learning rate, real test images, five runs.
    "defined": {
        "measures": DEFINED,
        "update": ["sgd"],
        "every": 9,
        "seeds": [0, 1, 2, 3, 4],
    },
    # The published code: the step of a fresh Adam, the measures and the schedule of that code, "test" images from the
    # training set, three runs. The same runs are also measured with update sgd and with Definitions 1 and 2.
    "published": {
        "measures": [*PUBLISHED, *DEFINED],
        "update": ["fresh_adam", "sgd"],
        "every": 9,
        "schedule": "epoch",
        "test_images": "train",
        "seeds": [0, 1, 2],
    },
    # Each measure with each update rule. This shows whether a difference between `defined` and `published` comes from
    # the measure or from the update rule.
    "crossed": {
        "measures": [*DEFINED, "raw_l1", "raw_l2", *PUBLISHED],
        "update": [
            "sgd@1e-4",
            "sgd@1e-3",
            "sgd@1e-2",
            "optimizer",
            "fresh_adam",
            "limit",
        ],
        "every": 18,
        "seeds": [0, 1, 2, 3, 4],
    },
}


def preset(
    protocol: str, dataset: str, select_top: int | None = None
) -> dict[str, Any]:
    """Return {option: value} of a protocol for a dataset, without classes if --select-top selects them.

    A dataset that is not in `DATASETS` gets only the options of the recipe and of the protocol. Raises `OptionError`
    for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise OptionError(
            f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}"
        )
    options = {**PUBLISHED_RECIPE, **DATASETS.get(dataset, {}), **PROTOCOLS[protocol]}
    if select_top:
        options.pop("classes", None)
    return options
