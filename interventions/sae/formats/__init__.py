"""Readers of SAE files, one module a library; none imports the library it reads."""
