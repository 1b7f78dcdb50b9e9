"""One optimisation: what a method asks for, and how transformers' Trainer carries it out."""
