"""Sources: one package each; they do not know each other."""
