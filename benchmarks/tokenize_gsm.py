"""Measures the time and memory to tokenize a data set of GSM8K-Aug's size into a token table, and to read that table.

    python benchmarks/tokenize_gsm.py --from LINES.txt --tokenizer FOLDER

Makes as many problems as GSM8K-Aug has (385,620) from lines ``question||steps #### answer``. Each copy gets different
numbers, different names and some different words, and no question comes twice, so that neither the detection of
repeated texts nor the tokenizer's cache of words helps more than on real data. Builds the table, then opens it again,
each in a new process.
"""

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROBLEMS = 385_620
SYLLABLES = ["ba", "chi", "del", "fo", "gar", "hu", "jin", "ka", "lo", "mir", "na", "pe", "qua", "ro", "sil", "tu"]
CHANGED_WORDS = 0.1
READS = 100_000
CHECKS = 9
"""Number of times that the table is opened; the median counts."""


def perturbed(text: str, names: dict[str, str], words: list[str], chance: random.Random) -> str:
    """The text with different digits, different names (consistent within a problem) and some different words."""

    def number(match: re.Match[str]) -> str:
        return str(chance.randrange(1, 10)) + "".join(str(chance.randrange(10)) for _ in match[0][1:])

    def word(match: re.Match[str]) -> str:
        found = match[0]
        if found[0].isupper():
            return names.setdefault(found, "".join(chance.choices(SYLLABLES, k=chance.randint(2, 3))).capitalize())
        return chance.choice(words) if chance.random() < CHANGED_WORDS else found

    return re.sub(r"\d+", number, re.sub(r"[A-Za-z]{3,}", word, text))


def problems(lines: list[str], count: int) -> Iterator[dict[str, object]]:
    """Yields ``count`` problems with different questions."""
    chance = random.Random(0)
    words = sorted(set(re.findall(r"\b[a-z]{3,}\b", " ".join(lines))))
    seen: set[int] = set()
    while len(seen) < count:
        question, _, rest = lines[len(seen) % len(lines)].partition("||")
        steps, _, answer = rest.rpartition(" #### ")
        names: dict[str, str] = {}
        question = perturbed(question, names, words, chance)
        if hash(question) in seen:
            continue
        seen.add(hash(question))
        others = [perturbed(text, names, words, chance) for text in (*steps.split(), answer)]
        yield {"question": question, "steps": others[:-1], "answer": others[-1]}


def write(path: Path, lines: list[str], count: int) -> None:
    """Writes a file of problems, one by one: this process must stay small, since its children inherit its peak RSS."""
    with path.open("w", encoding="utf-8") as file:
        for index, problem in enumerate(problems(lines, count)):
            file.write(("[" if index == 0 else ",\n") + json.dumps(problem, ensure_ascii=False))
        file.write("]\n")


def measure(data: Path, tokenizer: str, cache: Path) -> None:
    """Opens or builds the table in this process, and prints its time and memory."""
    # Imported here, since the process that starts this one must stay small. torch, since every run imports it.
    import torch  # noqa: F401

    from coconut_ds.data.token_table import TokenTable, cached_tokens
    from coconut_ds.data.tokens import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    began = time.perf_counter()
    table = cached_tokens(data, loaded, cache, notify=print)
    opened = time.perf_counter() - began
    (path,) = cache.glob("*.arrow")
    size, checks = path.stat().st_size, []
    for _ in range(CHECKS):
        began = time.process_time()
        TokenTable(path)
        checks.append(time.process_time() - began)
    checked = statistics.median(checks)
    used = resource.getrusage(resource.RUSAGE_SELF)
    chance = random.Random(0)
    indices = [chance.randrange(len(table)) for _ in range(READS)]
    began = time.perf_counter()
    for index in indices:
        table[index]
    reading = (time.perf_counter() - began) / READS * 1e6
    print(f"  {len(table):,} problems in {opened:.2f} s; {reading:.1f} microseconds to read one")
    rate = size / checked / 1e9
    print(f"  opening and checking its {size / 1e6:.0f} MB takes {checked:.3f} CPU s, {rate:.2f} GB per CPU s")
    print(f"  process so far: {used.ru_utime + used.ru_stime:.1f} CPU s, peak RSS {used.ru_maxrss / 2**20:.2f} GiB")


def main() -> None:
    """Makes the problems, then measures building the table and opening it again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", required=True, help="lines question||steps #### answer")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="how many to make")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "CACHE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), given.tokenizer, Path(given.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "problems.json", Path(folder) / "cache"
        lines = [line for line in Path(given.source).read_text(encoding="utf-8").splitlines() if line]
        write(data, lines, given.problems)
        print(f"{given.problems:,} problems, {data.stat().st_size / 1e6:.0f} MB of text")
        for what in ("build", "second open"):
            print(f"{what}:", flush=True)
            began = time.perf_counter()
            subprocess.run([sys.executable, *sys.argv, "--measure", str(data), str(cache)], check=True)
            print(f"  whole process, imports and reads included: {time.perf_counter() - began:.2f} s")
        print(f"table: {sum(path.stat().st_size for path in cache.glob('*.arrow')) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
