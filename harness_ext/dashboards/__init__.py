"""Static pages of features: an index, and a page a feature, from a folder of facts."""
