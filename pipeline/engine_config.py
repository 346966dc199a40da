"""The options of the engine in their checked form. Loads neither Hydra nor Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OptionError
from .option_values import count, wrong
from .schema import AUTO, EngineSchema, defaults

# Of a cluster. An address of version 6 stands in brackets.
_ADDRESS = re.compile(r"(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which processes make the shards; changes no number beyond what another machine changes.

    None: of ``address``, a cluster for this run alone; of the others, as the resources of the cluster allow.
    """

    name: str = "local"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None


def check_engine(engine: Mapping[str, Any], device: str) -> EngineOptions:
    """Gives the options of the engine, checked.

    Args:
        engine: Nested like :class:`pipeline.schema.EngineSchema`.
        device: ``runtime.device``, checked.

    Raises:
        OptionError: A value is wrong, or set in vain.
    """
    if engine["name"] == "local":
        unset = defaults(EngineSchema(), "engine.")
        for name, value in engine.items():
            key = f"engine.{name}"
            if name != "name" and value != unset[key]:
                raise OptionError(
                    f"{key}: the local engine is one process on this machine, got {value!r}. Expected the default, or another "
                    "engine. Add engine=ray."
                )
        return EngineOptions()
    gpus = engine["gpus_per_worker"]
    if gpus != AUTO and (isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or not 0 <= gpus <= 1):
        raise wrong("engine.gpus_per_worker", gpus, "auto, 1, 0 or a share between them: a worker uses one GPU at most")
    gpus = None if gpus == AUTO else float(gpus)
    if gpus is not None and device != AUTO and (device == "gpu") != (gpus > 0):
        raise OptionError(
            f"engine.gpus_per_worker: workers compute on the {device}, got {gpus:g}. Expected {'more than ' * (not gpus)}0. "
            "Leave it or runtime.device out."
        )
    return EngineOptions(
        name=engine["name"],
        address=_address(engine["address"]),
        workers=count("engine.workers", engine["workers"], 100_000),
        gpus_per_worker=gpus,
        cpus_per_worker=count("engine.cpus_per_worker", engine["cpus_per_worker"], 1024),
    )


def _address(value: Any) -> str | None:
    if value is None:
        return None
    if value == AUTO:
        return AUTO
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < int(found[1]) < 65536:
        raise wrong("engine.address", value, "null, auto, host:port or ray://host:port")
    return str(value)
