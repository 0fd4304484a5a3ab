"""Leaderboards: many interventions on the same questions, ranked without crowning noise."""
