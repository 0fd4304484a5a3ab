"""SAEs: reading their files, their exact encoders, and the directions an edit needs."""
