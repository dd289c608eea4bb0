"""Training: recipe in, run folder out."""

from hardy.training.build import build_model, load_training_data
from hardy.training.finetune import class_weights
from hardy.training.folder import Progress, RunFolder
from hardy.training.loop import Run, train
from hardy.training.recipe import (
    DataRecipe,
    EvaluateRecipe,
    ModelRecipe,
    Recipe,
    TrainRecipe,
    build_methods,
    load_recipe,
)

__all__ = [
    "DataRecipe",
    "EvaluateRecipe",
    "ModelRecipe",
    "Progress",
    "Recipe",
    "Run",
    "RunFolder",
    "TrainRecipe",
    "build_methods",
    "build_model",
    "class_weights",
    "load_recipe",
    "load_training_data",
    "train",
]
