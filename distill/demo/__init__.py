"""A page on which a person prompts models: served on loopback, or in the browser alone."""
