"""What a path means: directories and files made of keys."""
