"""Training of one phase: what a method asks for, carried out by transformers' Trainer."""
