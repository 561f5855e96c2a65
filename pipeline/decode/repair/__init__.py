"""Pictures that are odd or damaged, and that any viewer shows: read as far as they go, and told how far that is."""
