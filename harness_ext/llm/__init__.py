"""Asking a language model over an OpenAI-compatible API: the verifier and the judge."""
