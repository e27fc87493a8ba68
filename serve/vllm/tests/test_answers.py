"""Greedy answers equal those of the project's own engine, token by token."""

import pytest
import tiny
from conftest import REFERENCE, SMALL_CACHE, answered, differences, options, preemptions, sampling, split, whole
from vllm import LLM
from vllm.platforms.cpu import CpuPlatform

from coconut_vllm.state import ThinkingState
from coconut_vllm.thoughts import Thoughts

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3", "mistral")
VARIANTS = ("codi", "deciding", "reversed", "pause", "pause_as_thought", "cot")
ROUNDS = 3
"""How often the questions are asked, all together, so that there are enough preemptions."""
IDS = tiny.tokenizer().get_vocab()


@pytest.fixture
def resumed(monkeypatch):
    """The numbers of thoughts with which requests came back after a preemption."""
    known_thoughts: list[int] = []
    original = Thoughts._row

    def noted(self, request, known):
        known_thoughts.append(known)
        return original(self, request, known)

    monkeypatch.setattr(Thoughts, "_row", noted)
    return known_thoughts


@pytest.fixture
def from_cache(monkeypatch):
    """For each request that enters a slot, how many of its positions after the prompt are in the prefix cache."""
    found: list[int] = []
    original = ThinkingState.add_request

    def noted(self, req_index, new_req_data):
        found.append(new_req_data.num_computed_tokens - len(new_req_data.prompt_token_ids))
        original(self, req_index, new_req_data)

    monkeypatch.setattr(ThinkingState, "add_request", noted)
    return found


@pytest.fixture(scope="module")
def wide(checkpoint):
    """An engine with room for 16 requests at a time, for tests that need no other."""
    llm = LLM(str(checkpoint("gpt2")), **options(max_num_seqs=16))
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_equal_the_reference_through_preemptions_and_pieces_of_prompts(engine, resumed, from_cache, name):
    """40 questions with 0 to 8 thoughts, three times; at least 20 preemptions, some of them within thoughts."""
    llm = engine(name, **SMALL_CACHE)
    outputs = answered(llm, name, ROUNDS)
    assert differences(outputs, name) == []
    texts = [whole(output.outputs[0].text) for output in outputs]
    assert texts == [whole(one["text"]) for one in REFERENCE[name]["answers"]] * ROUNDS
    assert preemptions(llm) >= 20
    assert any(known > 0 for known in resumed)
    # A resumed request finds keys and values of its own thoughts, which come directly after the prompt.
    assert any(count > 0 for count in from_cache)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_ways_to_think_equal_the_reference(engine, name):
    """CODI's projection, models that decide when to begin or end, pause tokens, and no thoughts at all."""
    outputs = answered(engine(name, **SMALL_CACHE), name)
    assert differences(outputs, name) == []
    assert len({one["thoughts"] for one in REFERENCE[name]["answers"]}) > (name != "cot" and "pause" not in name)


def test_without_the_kept_thoughts_answers_are_wrong(engine, monkeypatch):
    """The comparison sees it if resumed requests get other states than their own."""

    def forgets(self, request, known):
        row = self._left.pop(request, None)
        row = row if row is not None else self._free.pop() if self._free else self._left.popitem(last=False)[1]
        self.states[row].zero_()
        return row

    monkeypatch.setattr(Thoughts, "_row", forgets)
    assert differences(answered(engine("gpt2", **SMALL_CACHE), "gpt2"), "gpt2") != []


def test_the_asynchronous_scheduler_gives_the_same_answers(engine, monkeypatch):
    """A step is scheduled before the tokens of the one before it are known. vLLM turns this off on CPUs."""
    original = CpuPlatform.check_and_update_config

    def with_asynchronous_scheduling(config):
        original(config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", staticmethod(with_asynchronous_scheduling))
    llm = engine("llama", **SMALL_CACHE, async_scheduling=True)
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    assert differences(answered(llm, "llama", ROUNDS), "llama") == []
    assert preemptions(llm) >= 20


def test_prefixes_from_the_cache_give_the_same_answers(wide):
    """All questions twice, the second time with their keys and values in the cache."""
    first, second = answered(wide, "gpt2"), answered(wide, "gpt2")
    assert differences(first, "gpt2") == differences(second, "gpt2") == []
    assert sum(output.num_cached_tokens for output in second) > 500


def test_log_probabilities_equal_the_reference_and_thoughts_show_theirs(wide):
    """Those of the text are of distributions without markers; at a thought's position they are those of its state."""
    scored = REFERENCE["gpt2"]["scored"]
    for (text, changed), right in zip(tiny.asked("gpt2"), scored, strict=False):
        output = wide.generate(text, sampling(changed, logprobs=3), use_tqdm=False)[0].outputs[0]
        count = changed["n_thoughts"]
        rows = [list(row.items()) for row in output.logprobs]
        written = rows[count + 1 :]
        found = [dict(row)[token].logprob for row, token in zip(written, output.token_ids[count + 1 :], strict=True)]
        assert found == pytest.approx(right["log_probabilities"], abs=1e-3)
        likeliest = [[token for token, one in row if one.rank <= 3][:3] for row in written]
        assert [set(row) for row in likeliest] == [set(row) for row in right["likeliest"]]
        shown = [{token for token, one in row if one.rank <= 3} for row in rows[:count]]
        assert shown == [set(thought) for thought in right["thoughts"]]


def test_limits_count_the_tokens_of_the_text(wide):
    """``max_tokens``, ``min_tokens`` and stop strings do not count thoughts and markers."""
    (text, _), right = tiny.asked("gpt2")[5], REFERENCE["gpt2"]["answers"][5]
    short = wide.generate(text, sampling({"n_thoughts": 5}, max_tokens=3), use_tqdm=False)[0]
    assert split(short, IDS) == (right["tokens"][:3], 5)
    assert short.outputs[0].finish_reason == "length"
    stop = right["text"][7:10]
    cut = wide.generate(text, sampling({"n_thoughts": 5}, stop=[stop]), use_tqdm=False)[0].outputs[0]
    assert (cut.text, cut.finish_reason) == (right["text"][: right["text"].index(stop)], "stop")
    first = right["tokens"][0]
    for least in (1, 4):
        kept = wide.generate(
            text, sampling({"n_thoughts": 5}, min_tokens=least, stop_token_ids=[first]), use_tqdm=False
        )[0]
        assert first not in split(kept, IDS)[0][:least]
    longest = wide.generate(text, sampling({"n_thoughts": 5}, max_tokens=None), use_tqdm=False)[0]
    assert len(longest.prompt_token_ids) + len(longest.outputs[0].token_ids) <= 128


def test_sampled_texts_follow_the_seed_alone(wide):
    """With other requests at the same time or not; the forced tokens are not sampled."""
    questions = [text for text, _ in tiny.asked("gpt2")[:6]]
    one = sampling({"n_thoughts": 3}, temperature=1.0, seed=7, n=2)
    together = wide.generate(questions, one, use_tqdm=False)
    alone = [wide.generate(question, one, use_tqdm=False)[0] for question in questions]
    assert [[list(o.token_ids) for o in x.outputs] for x in together] == [
        [list(o.token_ids) for o in x.outputs] for x in alone
    ]
    assert any(x.outputs[0].token_ids != x.outputs[1].token_ids for x in together)
    assert all(list(o.token_ids[:3]) == [IDS["<|latent|>"]] * 3 for x in together for o in x.outputs)
    assert not any(
        {*tiny.MARKERS} & {*wide.get_tokenizer().convert_ids_to_tokens(o.token_ids[4:])}
        for x in together
        for o in x.outputs
    )
