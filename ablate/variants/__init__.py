"""The choices of a pretraining recipe: one file per factor, one decorated class or function per variant."""

from ablate.variants._factor import FACTORS, Choice, Factor, Variant, load_factors

__all__ = ["FACTORS", "Choice", "Factor", "Variant", "load_factors"]
