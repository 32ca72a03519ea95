"""The vLLM builds that a checkpoint may be meant for, and what in a checkpoint is a fault there.

A target is a release and the patch series that was applied to it; without a series it is the stock
release. A quirk is a property of a release that turns something in a checkpoint into a fault, read
in the sources of the release. Which quirks a series lifts is said beside its patches, in
`steps/vllm/patches/<series>/series.yaml`:

    releases: [0.33.0]
    patches: [{file: 0001-quantized-compressor.patch, lifts: [compressor_unquantised]}]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

PATCHES: Final = Path(__file__).parents[1] / "vllm/patches"
SERIES_FILE: Final = "series.yaml"

Quirk = Literal[
    "scale_fmt_required",  # reads quantization_config.scale_fmt without a default
    "compressor_unquantised",  # builds the compressor without quantisation
    "indexer_weights_unquantised",  # builds indexer.weights_proj without quantisation
    "actorder_breaks_tp",  # does not shard the scales of w2 when actorder is set (vllm#41511)
    "fused_names_unmapped",  # looks for the fused names in targets: no packed_modules_mapping
    "fp4_renames_scales",  # with expert_dtype fp4 renames weight_scale to weight_scale_inv
    "gate_bias_strict",  # loads the gate's bias by its upstream name only
    "swiglu_unclamped",  # runs W4A16 experts without the SwiGLU limit
    "dspark_absent",  # has no DSpark draft that runs
    "experts_alike",  # moe_quant_algo is for all routed experts: neither ignore nor
    # quantized_layers is read of them (models/deepseek_v4/quant_config.py)
]

_PLAIN: Final[frozenset[Quirk]] = frozenset(
    {"compressor_unquantised", "indexer_weights_unquantised"}
)

RELEASES: Final[Mapping[str, frozenset[Quirk]]] = {
    "0.22.1": _PLAIN
    | {
        "scale_fmt_required",
        "actorder_breaks_tp",
        "fused_names_unmapped",
        "gate_bias_strict",
        "swiglu_unclamped",
        "dspark_absent",
    },
    "0.32.0": _PLAIN | {"fp4_renames_scales", "experts_alike"},
    "0.32.0-cpu": _PLAIN
    | {"fp4_renames_scales", "swiglu_unclamped", "dspark_absent", "experts_alike"},
    "0.33.0": _PLAIN | {"fp4_renames_scales", "experts_alike"},
    # The commit of the fork jasl/vllm with published results for the flagship's checkpoint.
    "abad5dc71": frozenset({"actorder_breaks_tp"}),
}


class UnknownTarget(ValueError):
    """There is no such release or series, or the series is for another release."""


@dataclass(frozen=True)
class Target:
    """A release and, unless it is the stock one, a series: a shipped one by name, or the path of
    one's own. Raises `UnknownTarget`."""

    release: str
    series: str = ""

    def __post_init__(self) -> None:
        if self.release not in RELEASES:
            raise UnknownTarget(
                f"no vLLM release {self.release!r} is known here; known are {', '.join(RELEASES)}"
            )
        if self.series and self.release not in self._lifted["releases"]:
            meant = ", ".join(self._lifted["releases"])
            raise UnknownTarget(
                f"the patch series {self.series!r} is for vLLM {meant}, not {self.release}"
            )

    def __str__(self) -> str:
        return f"{self.release} (series {self.series})" if self.series else self.release

    @cached_property
    def quirks(self) -> frozenset[Quirk]:
        lifts: Mapping[str, list[Quirk]] = self._lifted["lifts"]
        return RELEASES[self.release] - {quirk for patch in lifts.values() for quirk in patch}

    @cached_property
    def _lifted(self) -> Mapping[str, Any]:
        return lifted(self.series) if self.series else {"releases": (), "lifts": {}}


@lru_cache(maxsize=32)
def lifted(series: str) -> Mapping[str, Any]:
    """The releases that a series is for, and the quirks it lifts by patch file. Raises
    `UnknownTarget`."""
    folder = Path(series) if "/" in series else PATCHES / series
    listing = folder / SERIES_FILE
    try:
        there = listing.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        there = False
    if not there:
        shipped = ", ".join(sorted(path.parent.name for path in PATCHES.glob(f"*/{SERIES_FILE}")))
        raise UnknownTarget(f"there is no patch series {series!r}; shipped are {shipped}")
    import yaml

    try:
        found = yaml.safe_load(listing.read_text())
        releases = tuple(str(release) for release in found["releases"])
        lifts = {patch["file"]: list(patch.get("lifts", [])) for patch in found["patches"]}
        names = {quirk for quirks in lifts.values() for quirk in quirks}
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        raise UnknownTarget(f"{listing} is not of its form: {error}") from error
    if unknown := sorted(str(name) for name in names - set(get_args(Quirk))):
        raise UnknownTarget(f"{listing}: there is no quirk {unknown[0]}")
    return {"releases": releases, "lifts": lifts}


@lru_cache(maxsize=1)
def targets() -> tuple[Target, ...]:
    """Each known release, stock, and each shipped series upon its own."""
    series = sorted(path.parent.name for path in PATCHES.glob(f"*/{SERIES_FILE}"))
    return (
        *(Target(release) for release in RELEASES),
        *(Target(release, name) for name in series for release in lifted(name)["releases"]),
    )
