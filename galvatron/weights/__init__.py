"""Weights of a model in and out of the files of Hugging Face's libraries (`docs/weights.md`)."""

from galvatron.weights.adapters import initialisers
from galvatron.weights.export import check_export, export
from galvatron.weights.form import ModelForm
from galvatron.weights.loading import Weights, check_weights, found_for

__all__ = ["ModelForm", "Weights", "check_export", "check_weights", "export", "found_for", "initialisers"]
