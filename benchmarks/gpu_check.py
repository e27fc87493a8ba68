"""Checks that the project works on a GPU, and measures how fast it is there: at most eight minutes on an H200.

    python benchmarks/gpu_check.py --out outputs/gpu               # all sections on the first CUDA device
    python benchmarks/gpu_check.py --out outputs/gpu --sections environment trace
    python benchmarks/gpu_check.py --out outputs/small --device cpu --small    # runs the code without a GPU
    python benchmarks/gpu_check.py --table outputs/gpu …           # a row of docs/gpu.md for each folder

Each section runs in a process of its own with its own time limit, and writes what it finds to ``NAME.json`` in the
folder as it goes (its whole output is in ``NAME.log``), so a section that fails, hangs or is killed takes nothing with
it. The end is a table and a verdict; ``summary.json`` holds all results. docs/gpu.md says what each number means.

Sections that train with the project's engine need deepspeed, hydra-core, omegaconf and pydantic; without them they are
skipped, or measure the latent loop with torch's AdamW. Everything else needs only torch and transformers.

Exit codes: 0 passed (sections may be skipped), 1 a check failed, 3 a section did not finish, 2 a wrong option.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# ``tests`` has the slow loop. Its folder is last, so that nothing in it hides another module.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from gpu.report import Report, verdict
from gpu.runner import SECTIONS, TOTAL_S, Section, run_sections
from gpu.tables import card_table, section_table

from coconut_ds.errors import CoconutError, ConfigError

EXIT_CODES = {"passed": 0, "failed": 1, "incomplete": 3}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check from the command line. Returns the exit code."""
    contents = "\n".join(f"  {section.name:<12} {section.limit_s:4.0f} s  {section.content}" for section in SECTIONS)
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nSections, with their limits:\n{contents}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, help="folder of the results; those of an earlier check are replaced")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to run the code; the numbers mean nothing")
    parser.add_argument("--sections", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all sections together; default: 480")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FOLDER", help="print a table of finished checks")
    parser.add_argument("--run-section", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        if options.table:
            sys.stdout.write(card_table(options.table) + "\n")
            return 0
        if options.out is None:
            raise ConfigError("--out: is missing; expected a folder for the results")
        if options.run_section:
            run_section(options.run_section, options)
            return 0
        return check(options)
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def check(options: argparse.Namespace) -> int:
    """Runs the chosen sections, prints the table and returns the exit code."""

    def command(section: Section) -> list[str]:
        given = ["--out", str(options.out), "--device", options.device, *(["--small"] if options.small else [])]
        return [sys.executable, __file__, *given, "--run-section", section.name]

    def show(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    chosen = [section for section in SECTIONS if section.name in options.sections]
    results = run_sections(chosen, command, options.out, options.seconds, show)
    show(f"\n{section_table(results)}\nresults: {options.out / 'summary.json'}")
    return EXIT_CODES[verdict(results)]


def run_section(name: str, options: argparse.Namespace) -> None:
    """Runs one section in this process.

    Raises:
        ConfigError: there is no CUDA device.
    """
    # Imported here: the process that starts the sections does not need torch.
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch finds no CUDA device; to run the code without one: --device cpu --small"
        )
    from gpu.workload import Options

    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out / f"{name}.json", name)
    with report.guarded(name):
        import_module(f"gpu.{name}").run(report, Options(torch.device(options.device), options.small, options.out))
    report.finish()


if __name__ == "__main__":
    sys.exit(main())
