"""Training of an SAE: text, activations, dictionary, thresholds, statistics, evaluation."""
