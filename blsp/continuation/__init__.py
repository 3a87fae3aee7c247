"""Step 1 of the method: the LLM writes from the transcripts (paper, section 3.1)."""
