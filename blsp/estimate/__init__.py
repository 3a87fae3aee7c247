"""`blsp estimate`: what training will take, before it is started. No stage; nothing here decides what is stale."""
