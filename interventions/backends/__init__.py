"""Hooks that hand a running model's residual stream to the editor."""
