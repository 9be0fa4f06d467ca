"""Continual pretraining of a language model: a corpus, then another one mixed in, as in FIRE, section 4.2."""
