"""Sizes and costs of the inner products of factored gradients. The costs decide which of two methods is used."""

import math
from typing import NamedTuple


class PairSizes(NamedTuple):
    """Sizes of the inner products of sources and targets.

    Pixels and channels refer to the inputs from which `windows` selects patches.
    """

    sources: int
    targets: int
    functions: int
    groups: int
    source_positions: int
    target_positions: int
    inputs: int
    outputs: int
    weights: int
    source_pixels: int
    target_pixels: int
    channels: int
    has_windows: bool

    @property
    def position_pairs(self) -> int:
        return self.source_positions * self.target_positions

    @property
    def pixel_pairs(self) -> int:
        return self.source_pixels * self.target_pixels

    @property
    def patch_products(self) -> int:
        """Multiply-adds of ⟨a_it, a_jt'⟩ at all positions of one pair and group, if whole patches are multiplied."""
        return self.position_pairs * self.inputs

    @property
    def pixel_products(self) -> float:
        """Multiply-adds of the inner products of `patch_products`, if they are summed from products of pixels.

        Each product of two pixels is computed once, and used for all patches that contain these pixels.
        """
        if not self.has_windows:
            return math.inf
        return self.pixel_pairs * (self.channels + self.position_pairs)

    @property
    def gram(self) -> float:
        """Multiply-adds of all pairs, if products of positions are summed, with one elementwise pass per function."""
        by_functions = self.functions * self.position_pairs * (self.outputs + 4)
        one_pair = self.groups * (
            min(self.patch_products, self.pixel_products) + by_functions
        )
        return self.sources * self.targets * one_pair

    @property
    def explicit(self) -> int:
        """Multiply-adds of all pairs, if the gradients are formed and multiplied. Includes forming the gradients."""
        forming = (
            self.sources * self.source_positions
            + self.targets * self.functions * self.target_positions
        )
        products = self.sources * self.targets * self.functions
        return (forming + products) * self.weights
