"""Commands that list what the package has: recipes, photo sets, students and published numbers."""
