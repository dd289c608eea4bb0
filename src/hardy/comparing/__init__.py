"""A grid of methods, nets and seeds under one budget: trained, evaluated alike, compared on one page."""

from hardy.comparing.recipe import CompareRecipe, load_grid
from hardy.comparing.run import compare

__all__ = ["CompareRecipe", "compare", "load_grid"]
