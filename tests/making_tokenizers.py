"""Tokenizers whose tokens may be parts of characters, and others to compare them with."""

from functools import cache

from imports import ROOT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from coconut_ds.data.tokens import build_word_tokenizer

MERGES = ROOT / "tests" / "fixtures" / "gpt2_merges.txt"
"""GPT-2's merges: the first 400, and all that make tokens with bytes beyond ASCII."""
REAL = ROOT.parent / "shared" / "data" / "gpt2_tokenizer"
"""The complete tokenizer, if it was downloaded."""
END = "<|endoftext|>"
PIECES = ("▁", "▁the", "the", "▁cat", "cat", "s", "▁a", "a", "b", "é", "▁é", "日", ".", ",", "##", "▁▁")


@cache
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    """One tokenizer of each kind, by the name of the kind."""
    words = build_word_tokenizer(["the cat sat. on the mat, 1 + 2 = 3", "é 日本 😀\nthe"])
    made = {"gpt2": _gpt2(), "llama": _with_bytes(strip=True), "gemma": _with_bytes(strip=False), "words": words}
    return {**made, "wordpiece": _wordpiece(), "metaspace": _metaspace(), "lone_spaces": _lone_spaces()}


def _gpt2() -> PreTrainedTokenizerBase:
    """GPT-2's tokenizer, or the part of it in the fixture."""
    if REAL.is_dir():
        return AutoTokenizer.from_pretrained(REAL)
    merges = [tuple(line.split(" ")) for line in MERGES.read_text(encoding="utf-8").splitlines()]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), END]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer)


def _lone_spaces() -> PreTrainedTokenizerBase:
    """Like that of Llama 3, it never joins a space to digits, but does join it to signs."""
    merges = [("#", "#"), ("##", "#"), ("Ġ", "-"), ("1", "4")]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), END]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, merges))
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer)


def _with_bytes(strip: bool) -> PreTrainedTokenizerBase:
    """A tokenizer with byte fallback. Like Llama's it leaves out a space at the beginning; without ``strip``, like
    Gemma's it does not."""
    names = [END, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted({c for piece in PIECES for c in piece})]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "a"), ("▁", "é")]
    names += ["".join(pair) for pair in merges if "".join(pair) not in names]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    start = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
    end = [decoders.Strip(" ", 1, 0)] if strip else []
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *end]
    tokenizer.decoder = decoders.Sequence(parts)
    return _fast(tokenizer)


def _wordpiece() -> PreTrainedTokenizerBase:
    names = [END, "[UNK]", "the", "cat", "##s", "##é", "é", "日", ".", "s"]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer)


def _metaspace() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram([(END, 0.0), *((piece, -1.0) for piece in PIECES)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _fast(tokenizer)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
