"""Text as token rows: from files, data sets and packages, mixed by weight, in a fixed order."""
