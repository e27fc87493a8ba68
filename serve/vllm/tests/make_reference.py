"""Computes the tokens that vLLM must write, with the project's own engine.

Run it in the project's own environment, from the top of the checkout: ``python serve/vllm/tests/make_reference.py``.
"""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coconut_ds import load_reasoner
from coconut_ds.generation.prompter import Writing
from coconut_ds.reasoner import Reasoner
from tiny import CHECKPOINTS, DATA, NEW_TOKENS, WORDS, asked, build, digest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SCORED = 6
LIKELIEST = 3


def make_tokenizer() -> None:
    """Trains the tokenizer, unless it exists: later checkpoints must have the same."""
    path = DATA / "tokenizer.json"
    if path.exists():
        return
    made = Tokenizer(models.BPE())
    pattern = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+\n*|\s+"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS) + ".\n", "### 12\n", "yes.\nno.\n"] * 20, trainer)
    # Puts a token before each text, and one after it, which questions must not have.
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|endoftext|>", special_tokens=[("<|begin|>", 1), ("<|endoftext|>", 0)]
    )
    made.save(str(path))


def scores(reasoner: Reasoner, question: str, options: dict[str, Any]) -> dict[str, Any]:
    """The log probabilities of a text's tokens, and the most probable tokens of its thoughts."""
    writing = Writing(NEW_TOKENS, log_probabilities=True, num_likeliest=LIKELIEST)
    answers = reasoner._generate([question], reasoner.thoughts(**options), writing, 1, 1, None)
    kept = reasoner.generate(question, max_new_tokens=NEW_TOKENS, keep_thoughts=True, **options)[0]
    made = answers[0].completion
    thoughts = [
        reasoner.loop.head(state[None])[0].topk(LIKELIEST).indices.tolist()
        for state in (kept.thoughts if kept.thoughts is not None else [])
    ]
    return {
        "log_probabilities": [round(one, 4) for one in made.log_probabilities],
        "likeliest": [[token for token, _ in score.likeliest] for score in made.scores],
        "thoughts": thoughts,
    }


def reference(name: str, folder: Path) -> dict[str, Any]:
    """The answers of one checkpoint."""
    place = build(name, folder)
    reasoner = load_reasoner(place)
    questions = asked(name)
    answers: list[dict[str, Any]] = [{} for _ in questions]
    for options in CHECKPOINTS[name].options:
        chosen = [i for i, (_, own) in enumerate(questions) if own is options]
        made = reasoner.generate([questions[i][0] for i in chosen], max_new_tokens=NEW_TOKENS, **options)
        for i, answer in zip(chosen, made, strict=True):
            done = answer.completion
            answers[i] = {"tokens": done.tokens, "text": answer.text, "thoughts": done.num_thoughts}
    scored = [scores(reasoner, *one) for one in asked(name)[:SCORED]] if name == "gpt2" else []
    return {"digest": digest(place), "answers": answers, "scored": scored}


def main() -> None:
    """Writes ``data/reference.json``."""
    logging.getLogger("coconut_ds").setLevel(logging.ERROR)
    DATA.mkdir(exist_ok=True)
    make_tokenizer()
    with TemporaryDirectory() as folder:
        made = {name: reference(name, Path(folder)) for name in CHECKPOINTS}
    lines = ",\n".join(f'"{name}": {json.dumps(content, ensure_ascii=False)}' for name, content in made.items())
    (DATA / "reference.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    for name, content in made.items():
        answers = content["answers"]
        counts = sorted({answer["thoughts"] for answer in answers})
        different = len({tuple(answer["tokens"]) for answer in answers})
        print(f"{name}: {len(answers)} answers, {different} of them different, with {counts} thoughts")


if __name__ == "__main__":
    main()
