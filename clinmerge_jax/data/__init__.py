"""Text in: documents, conversations, tokens and which of them are scored."""
