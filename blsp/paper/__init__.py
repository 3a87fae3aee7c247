"""The comparison of trained variants: each is measured by itself, then all are set side by side on one page."""
