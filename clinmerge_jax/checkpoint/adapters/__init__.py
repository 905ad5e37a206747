"""LoRA adapters in the layout of PEFT: reading, adding to a checkpoint, writing."""
