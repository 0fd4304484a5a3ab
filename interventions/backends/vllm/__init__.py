"""Steering inside vLLM: a general plugin; every request carries its own intervention.

The frontend checks a request's spec and compiles it (`admission`, `compiled`); the engine core
keeps its KV blocks apart (`kv_keys`); each worker edits the residual stream inside the compiled
graph (`layers`, `op`, `tables`) at the rows that the step holds (`steps`), and counts on the
device what it did (`worker`). `plugin` puts these into vLLM, through the places that `adapter`
names for each version.
"""
