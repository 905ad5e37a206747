"""The figures of a check, in one JSON file that is complete at any time, and the table made of them."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from clinmerge_jax.report.tables import table

_LEGEND = (
    "Merges: the models read and the one written, at the bandwidth of a copy in the same round. Roofline: all weights"
    " but the embedding, and the keys and values so far, read once a step at a copy's bandwidth in the same repeat."
    " MFU: the operations needed, recomputation left out, at the speed of a product of two matrices in this process."
    " clinmerge_jax / it: medians of both, each in a process of its own; transformers runs eagerly with SDPA."
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")


class Record:
    """The JSON file. Only one process writes at a time: the driver between parts, or the running part.

    Args:
      path: of the file; it may not exist yet.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    def read(self) -> dict[str, Any]:
        """The content: `parts` by name with their status, and the list `figures`."""
        return json.loads(self.path.read_bytes()) if self.path.is_file() else {"parts": {}, "figures": []}

    def _write(self, content: Mapping[str, Any]) -> None:
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.path)

    def start(self, keep: bool) -> None:
        """Begins the file.

        Args:
          keep: whether an earlier check's results are kept.
        """
        content = self.read() if keep else {"parts": {}, "figures": []}
        self._write({"python": platform.python_version(), "versions": versions(), **content})

    def part(self, name: str, status: str, **facts: Any) -> None:
        """Records the status of a part.

        Args:
          name: of the part.
          status: running, done, failed, timed out or skipped.
          **facts: further facts, such as `seconds` or `reason`.
        """
        content = self.read()
        content["parts"][name] = {"status": status, **facts}
        self._write(content)

    def figure(self, found: Mapping[str, Any]) -> None:
        """Adds a figure, or replaces the one of the same name, so that a value can improve with more repeats."""
        content = self.read()
        names = [one["name"] for one in content["figures"]]
        if found["name"] in names:
            content["figures"][names.index(found["name"])] = dict(found)
        else:
            content["figures"].append(dict(found))
        self._write(content)

    def values(self, name: str) -> list[float]:
        """The values of a figure, one per repeat; empty if there is no such figure."""
        return next((one["values"] for one in self.read()["figures"] if one["name"] == name), [])


def versions() -> dict[str, str]:
    """Versions of the packages that compute; packages that are not installed are left out."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True)
class Reporter:
    """Writes the figures of one part.

    Attributes:
      record: where the figures go.
      part: name of the part.
      device: kind of device that it computes on.
      command: command line that runs it again.
    """

    record: Record
    part: str
    device: str
    command: str

    def add(
        self,
        name: str,
        values: Sequence[float],
        unit: str,
        *,
        ratios: Sequence[float] = (),
        ratio_of: str = "",
        peak_bytes: float | None = None,
        **facts: Any,
    ) -> None:
        """Writes one figure at once.

        Args:
          name: of what was measured.
          values: one per repeat; the median is shown.
          unit: of the values.
          ratios: to the floor or the peer, one per repeat.
          ratio_of: what the ratios mean.
          peak_bytes: peak device memory since the process began.
          **facts: further facts, such as the shape.
        """
        self.record.figure({
            "name": name,
            "value": statistics.median(values),
            "unit": unit,
            "ratio": statistics.median(ratios) if ratios else None,
            "ratio_of": ratio_of if ratios else "",
            "repeats": len(values),
            "values": list(values),
            "ratios": list(ratios),
            "peak_bytes": peak_bytes,
            "part": self.part,
            "device": self.device,
            "versions": versions(),
            "command": self.command,
            **facts,
        })  # fmt: skip

    def against_ours(self, name: str, values: Sequence[float], unit: str, ours: str, **facts: Any) -> None:
        """Writes a figure of the peer, with the ratio of ours to it if ours was measured.

        Args:
          name: of the figure.
          values: one per repeat; more is better.
          unit: of the values.
          ours: the name of our figure.
          **facts: as for `add`.
        """
        median = statistics.median(values)
        ratios = [one / median for one in self.record.values(ours)]
        self.add(name, values, unit, ratios=ratios, ratio_of="clinmerge_jax / it", **facts)


def markdown(content: Mapping[str, Any]) -> str:
    """The figures as a table, then the status of every part, in Markdown for RESULTS.md."""
    rows = [
        [
            one["name"],
            f"{one['value']:.4g} {one['unit']}".strip(),
            f"{one['ratio']:.3g}" if one["ratio"] is not None else "",
            one["ratio_of"],
            str(one["repeats"]),
            f"{one['peak_bytes'] / 1e9:.1f}" if one["peak_bytes"] else "",
        ]
        for one in content["figures"]
    ]
    lines = [table(["measured", "median", "ratio", "of what", "repeats", "peak GB"], rows)] if rows else []
    devices = sorted({one["device"] for one in content["figures"]})
    known = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines.append(f"{', '.join(devices) or 'No figures'}; Python {content['python']}, {known}.")
    lines.append(_LEGEND)
    states = [[name, one["status"], f"{one.get('seconds', 0):.0f}", one.get("reason", "")]
              for name, one in content["parts"].items()]  # fmt: skip
    lines.append(table(["part", "status", "seconds", "reason"], states))
    return "\n\n".join(lines)
