"""The `lamjax` command."""
