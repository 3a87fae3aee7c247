"""Step 2 of the method: the adapter learns to make the LLM behave on speech as on text (paper, section 3.2)."""
