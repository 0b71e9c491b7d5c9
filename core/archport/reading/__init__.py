"""From what a caller gives to token ids: texts, pairs, prompts, chats and columns. Runs no model."""
