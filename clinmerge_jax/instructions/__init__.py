"""Following instructions that rules can check: what was asked, a checker for each kind, and the scores of answers."""
