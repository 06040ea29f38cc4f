"""Install the library alone: `train`, `tests`, `notebooks` and `results` are used from the checkout."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="srel_tf",
    version="0.1.0",
    description="Local elasticity (S_rel) of neural nets, measured exactly inside Keras's model.fit",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["srel_tf", "srel_tf.*"]),
    install_requires=[
        "tensorflow>=2.18",
        "keras>=3.8",
        "tensorflow-datasets>=4.9.7",
        "importlib_resources>=6",  # TFDS imports it when it prepares a set, and does not require it.
        "numpy>=1.26",
        "pandas>=2.2",
        "pyarrow>=16",
        "scipy>=1.12",
        "scikit-learn>=1.4",
        "ruptures>=1.1.9",
        "matplotlib>=3.8",
        "pillow>=10",
        "seaborn>=0.13.2",
        "tensorboard>=2.18",
        "filelock>=3.20.1",
    ],
    extras_require={
        "notebooks": ["jupyterlab>=4"],
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "mpmath>=1.3", "ruff>=0.6"),
            *("nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"),
        ],
        "torch": ["torch>=2.2"],  # For its recipes in `python -m train.benchmark`.
    },
)
