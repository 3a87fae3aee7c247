"""The systems side by side on every task, and the gap between behaviour on speech and on text."""
