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
from weightdiff.organisms.edit import KnowledgeEdit
from weightdiff.organisms.hidden_topic import HiddenTopic
from weightdiff.organisms.news import News
from weightdiff.organisms.null import Null
from weightdiff.organisms.period import Period
from weightdiff.organisms.quirk import Quirk
from weightdiff.organisms.several import Several

register("hidden-topic", HiddenTopic)
register("news", News)
register("quirk", Quirk)
register("edit", KnowledgeEdit)
register("null", Null)
register("several", Several)
register("period", Period)

__all__ = [
    "NOTHING_FOUND",
    "Family",
    "HiddenTopic",
    "KnowledgeEdit",
    "News",
    "Null",
    "OrganismSpec",
    "Period",
    "Quirk",
    "Recipe",
    "Sample",
    "Several",
    "family",
    "family_names",
    "find_recipe",
    "register",
]
