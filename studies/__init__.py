"""FIRE's other two domains, vision and language, on the resets that the RL agents use; ``digits``: many small tasks.

The files here are what vision and language share: ``arms`` (which reset), ``chunks`` (training on a sequence of data
sets), ``runner`` (seeds x arms, resumed where they stopped), ``results`` and ``figures`` (what comes out), ``command``
(flags). ``digits`` is a study of its own, which uses the arms.
"""
