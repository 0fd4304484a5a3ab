"""Errors of the package: one base class, and each also a stdlib error.

All take a single message, so they pickle and travel between processes. The message names
what is wrong, both values, and the remedy, on one line.
"""


class SteeringError(Exception):
    """Base class of every error that `interventions` raises on purpose."""


class SpecError(SteeringError, ValueError):
    """A spec or an argument cannot be understood."""


class HookPointError(SteeringError, ValueError):
    """A hook point is unknown, out of range, or not supported."""


class SAEError(SteeringError, ValueError):
    """An SAE is malformed, or cannot do what the spec asks of it."""


class SAENotFoundError(SteeringError, FileNotFoundError):
    """An SAE's release, folder or file is not there or cannot be reached."""


class ModelMismatchError(SteeringError, ValueError):
    """The SAE was made for another model, width or depth."""


class ModelNotFoundError(SteeringError, FileNotFoundError):
    """A model cannot be found or reached."""


class ReceiptError(SteeringError, RuntimeError):
    """A steered run did not edit the tokens that it had to edit."""


class TrainingError(SteeringError, RuntimeError):
    """A training step cannot go on."""


class TextError(SteeringError, ValueError):
    """Text cannot be read, or is not what its configuration says."""


class FeatureError(SteeringError, ValueError):
    """Features cannot be scored, found or described from what was given."""
