"""Flags, environment and ini, read once into one frozen object that says where each value came from.

`choices`: what may be said; `options`: of what; `given`: what was said, and where; `reading`: what that comes to.
"""

from pytest_memleak.settings.choices import (
    ALWAYS,
    AUTO,
    BACKENDS,
    EQUAL,
    NEVER,
    OFF,
    RERUN,
    SIMULATED,
    WHOLE,
)
from pytest_memleak.settings.given import Given
from pytest_memleak.settings.options import OPTIONS, Option, add_options
from pytest_memleak.settings.reading import SETTINGS, Settings, read, read_card

__all__ = [
    "ALWAYS",
    "AUTO",
    "BACKENDS",
    "EQUAL",
    "NEVER",
    "OFF",
    "OPTIONS",
    "RERUN",
    "SETTINGS",
    "SIMULATED",
    "WHOLE",
    "Given",
    "Option",
    "Settings",
    "add_options",
    "read",
    "read_card",
]
