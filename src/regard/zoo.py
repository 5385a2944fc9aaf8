"""Finds the families; builds, loads and saves their models."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import regard.models
from regard.attention.kernel import KernelName
from regard.blocks.init import initialise
from regard.checkpoint.hub import resolve
from regard.core.errors import CheckpointError, ConfigError, did_you_mean
from regard.core.serial import from_json, to_json
from regard.family import Family


@functools.cache
def families() -> Mapping[str, Family]:
    """Every family by name: each module of ``regard.models`` has one, called FAMILY."""
    modules = [importlib.import_module(f"regard.models.{info.name}") for info in pkgutil.iter_modules(regard.models.__path__)]
    return {module.FAMILY.name: module.FAMILY for module in modules}


def sizes() -> dict[str, tuple[Family, Any]]:
    """Every named size, with its family and configuration."""
    return {name: (family, config) for family in families().values() for name, config in family.sizes.items()}


def family_of(config: Any) -> Family:
    """The family whose configuration this is. Raises ConfigError for anything else."""
    for family in families().values():
        if type(config) is family.config:
            return family
    raise ConfigError(f"{type(config).__name__} is no family's configuration; there are {', '.join(families())}")
