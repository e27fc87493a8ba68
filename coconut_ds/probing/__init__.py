"""Tools to analyse thoughts: decoding, linear probes and interventions, with controls. All results are plain values."""
