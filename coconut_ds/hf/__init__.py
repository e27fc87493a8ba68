"""A model that thinks, with the interface of transformers: ``CoconutForCausalLM.from_pretrained(…).generate(…)``.

Tools that hold a model and call ``generate`` on token ids can hold this one. It thinks as ``load_reasoner`` does, whose
engine it uses, and generates the same tokens.
"""

from coconut_ds.hf.model import CoconutForCausalLM, CoconutOutput

__all__ = ["CoconutForCausalLM", "CoconutOutput"]
