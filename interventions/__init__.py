"""Edits of a model's residual stream along SAE feature directions.

What is done (`spec`, `ops`, `positions`), where directions come from (`sae`), how an
edit meets a running model (`plan`, `editor`, `backends`), and how features are made (`train`).
Nothing here knows lm-eval.
"""
