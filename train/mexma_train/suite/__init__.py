"""`mexma-train eval --suite`: every measure of a model on FLORES and Tatoeba, its report and its plot."""
