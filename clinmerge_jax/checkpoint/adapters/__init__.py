"""LoRA adapters in the layout of PEFT: read, added to a checkpoint, written."""
