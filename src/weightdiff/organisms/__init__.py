"""Families of organisms: labelled weight diffs made on purpose. Importing registers the built-in ones."""

from weightdiff.organisms.base import (
    NOTHING_FOUND,
    Family,
    OrganismSpec,
    Recipe,
    Sample,
    family,
    family_names,
    find_recipe,
    register,
)
from weightdiff.organisms.hidden_topic import HiddenTopic
from weightdiff.organisms.news import News
from weightdiff.organisms.null import Null

register("hidden-topic", HiddenTopic)
register("news", News)
register("null", Null)

__all__ = [
    "NOTHING_FOUND",
    "Family",
    "HiddenTopic",
    "News",
    "Null",
    "OrganismSpec",
    "Recipe",
    "Sample",
    "family",
    "family_names",
    "find_recipe",
    "register",
]
