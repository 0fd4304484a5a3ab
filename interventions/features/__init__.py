"""What features are about: scores, facts and checks, each in one pass over text."""
