"""Text data: documents and conversations, their tokens and target masks, and the batches made of them."""
