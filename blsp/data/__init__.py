"""Sources, audio, text and shards: from any spoken corpus to one packed form."""
