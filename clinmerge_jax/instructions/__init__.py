"""Instruction following: the instructions of a prompt, a rule-based checker for each kind, and scores of answers."""
