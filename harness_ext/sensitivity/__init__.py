"""Feature sensitivity: do texts written after a feature's own examples make it fire?"""
