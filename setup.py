"""Entry point for tools that need a setup.py; the metadata are in pyproject.toml."""

from setuptools import setup

setup()
