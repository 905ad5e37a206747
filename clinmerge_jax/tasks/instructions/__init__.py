"""Instruction-following tasks: IFEval, part of IFBench, and the generated everyday, clinical and two-turn sets."""
