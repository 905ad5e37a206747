"""Instruction-following tasks: IFEval, IFBench, and the generated everyday and clinical sets."""
